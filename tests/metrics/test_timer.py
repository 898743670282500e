"""Sections, rates and goodput over a restart."""

import json
import timeit

import pytest

from dreamer_tpu.metrics.timer import Rate, Section, Timer, section_metrics
from tests.helpers.clock import Clock


def test_sections():
  clock = Clock()
  timer = Timer(clock)
  for seconds in (1, 2):
    with timer.section('acting'):
      clock.advance(seconds)
  with timer.section('learning'):
    clock.advance(5)
  clock.advance(2)
  sections = timer.take()
  assert sections == {
    'acting': Section(avg=1.5, max=2, count=2, frac=0.3),
    'learning': Section(avg=5, max=5, count=1, frac=0.5),
  }
  assert section_metrics({'acting': sections['acting']}) == {
    'timer/acting/avg': 1.5,
    'timer/acting/max': 2,
    'timer/acting/count': 2,
    'timer/acting/frac': 0.3,
  }
  assert timer.take() == {}
  clock.advance(2)
  timer.add('acting', 3)
  assert timer.take() == {'acting': Section(3, 3, 1, 1.5)}
  assert timer.shares() == {'acting': 0.5, 'learning': 5 / 12}


def test_a_section_counts_if_it_raises():
  clock = Clock()
  timer = Timer(clock)

  def act():
    with timer.section('acting'):
      clock.advance(1)
      raise KeyError

  with pytest.raises(KeyError):
    act()
  assert timer.take()['acting'].max == 1


def test_a_section_is_cheap():
  timer = Timer()

  def section():
    with timer.section('policy'):
      pass

  assert min(timeit.repeat(section, number=1000, repeat=10)) / 1000 < 50e-6


def test_goodput_over_a_restart():
  clock, wall = Clock(), Clock(1e9)

  def advance(seconds):
    clock.advance(seconds)
    wall.advance(seconds)

  timer = Timer(clock, wall)
  advance(10)
  with timer.section('compiling'):
    advance(10)
  assert timer.goodput() == 0.5
  state = json.loads(json.dumps(timer.state()))
  advance(20)  # Lost: it came after the state was saved.
  clock.now = 7  # Clocks of processes start anywhere.
  timer = Timer(clock, wall)
  advance(10)
  timer.resume(state)
  assert timer.shares() == {'starting': 1}
  advance(10)
  assert timer.goodput() == pytest.approx(20 / 60)


def test_rate():
  clock = Clock()
  rate = Rate(1000, clock)
  clock.advance(0.5)
  assert rate(1100) == 200
  clock.advance(0.5)
  assert rate(1100) == 0
