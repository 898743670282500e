"""Sections, rates and goodput over a restart."""

import json
import time

import pytest

from dreamer_tpu.metrics.timer import Rate, Timer


def test_timer_sections():
  timer = Timer()
  for _ in range(2):
    with timer.section('acting'):
      time.sleep(0.03)
  with timer.section('learning'):
    time.sleep(0.06)
  stats = timer.stats()
  assert stats['timer/acting/count'] == 2
  assert 0.03 <= stats['timer/acting/avg'] < 0.1
  assert stats['timer/acting/max'] >= stats['timer/acting/avg']
  total = stats['timer/acting/frac'] + stats['timer/learning/frac']
  assert 0.9 < total <= 1
  assert timer.stats() == {}


def test_timer_is_cheap():
  timer = Timer()
  begin = time.perf_counter()
  for _ in range(10_000):
    with timer.section('policy'):
      pass
  assert (time.perf_counter() - begin) / 10_000 < 50e-6


def test_goodput_over_a_restart():
  timer = Timer()
  time.sleep(0.1)
  with timer.section('compiling'):
    time.sleep(0.1)
  assert timer.goodput() == pytest.approx(0.5, abs=0.15)
  state = json.loads(json.dumps(timer.state()))
  time.sleep(0.2)  # Lost: nothing after the state was saved counts.
  timer = Timer()
  time.sleep(0.1)
  timer.resume(state)
  assert timer.shares()['timer/starting/frac'] > 0.9
  time.sleep(0.1)
  assert timer.goodput() == pytest.approx(0.2 / 0.6, abs=0.1)


def test_rate():
  rate = Rate(1000)
  time.sleep(0.05)
  assert rate(1100) == pytest.approx(2000, rel=0.3)
  time.sleep(0.05)
  assert rate(1100) == 0
