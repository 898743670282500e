"""What a person sees, in a file and at a terminal."""

import io
import math
import re
import time

import pytest

from dreamer_tpu.metrics import terminal


class Screen(io.StringIO):
  def isatty(self):
    return True


METRICS = {
  'fps/policy': 312.4,
  'episode/score': 187.25,
  'train/loss/dyn': 1.2345,
  'train/loss/image': 34.21,
  'timer/acting/frac': 0.25,
  'timer/learning/frac': 0.5,
  'perf/goodput': 0.9,
}


def test_view_in_a_file():
  stream = io.StringIO()
  view = terminal.View(stream)
  view.status('filling the replay')
  assert stream.getvalue() == '[0s] filling the replay\n'
  view.progress(12_345, 1_000_000, METRICS)
  time.sleep(0.1)
  view.progress(500_000, 1_000_000, METRICS)
  view.summary(1_000_000, 31_250, METRICS, 'runs/a')
  text = stream.getvalue()
  assert '\x1b' not in text
  lines = text.splitlines()
  assert lines[1].endswith(
    'step 12.3k/1M (1.2%) | left ? | 312.4 steps/s | score 187.2 | '
    'loss dyn 1.23 image 34.2'
  )
  assert '(50%) | left 0s |' in lines[2]
  assert 'done: 1,000,000 steps, 31,250 updates' in lines[3]
  assert 'learning 50%  acting 25%  (goodput 90%)' in text
  assert 'runs/a' in lines[-1]


def test_view_on_a_terminal_rewrites(monkeypatch):
  monkeypatch.setenv('COLUMNS', '60')
  stream = Screen()
  view = terminal.View(stream)
  for step in (1, 2, 3):
    view.progress(step, 1000, METRICS)
  view.status('saving')
  text = stream.getvalue()
  assert text.count('\n') == 2
  assert text.count('\r\x1b[2K') == 3
  assert max(map(len, re.split(r'\r\x1b\[2K|\n', text))) < 60


def test_time_left_is_that_of_the_recent_rate():
  stream = io.StringIO()
  view = terminal.View(stream)
  view.progress(0, 10_000, {})
  time.sleep(1)  # a compiler, for example
  for index in range(1, 12):
    view.progress(100 * index, 10_000, {})
    time.sleep(0.02)
  # 89 times 20 ms, where the whole time would give 10 seconds.
  assert 1 <= seconds_left(stream) <= 4


def seconds_left(stream):
  last = stream.getvalue().splitlines()[-1]
  return int(re.search(r'left (\d+)s', last)[1])


def test_compilers_do_not_count_for_the_time_left():
  stream = io.StringIO()
  view = terminal.View(stream)
  view.progress(0, 10_000, {'perf/compile_s': 30.0})
  time.sleep(0.1)
  view.progress(500, 10_000, {'perf/compile_s': 30.0})
  time.sleep(1)
  view.progress(505, 10_000, {'perf/compile_s': 31.0})
  # 19 times 0.1 s.
  assert 1 <= seconds_left(stream) <= 4


def test_view_without_the_log_output(capsys):
  view = terminal.View(enabled=False)
  view.status('x')
  view.progress(1, 2, {})
  view.summary(2, 1, {})
  assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (0, '0'),
    (950, '950'),
    (9_999, '10k'),
    (12_345, '12.3k'),
    (999_600, '1M'),
    (-3_140_000, '-3.14M'),
    (1e10, '10G'),
    (0.000123, '0.000123'),
    (187.25, '187.2'),
    (math.nan, 'nan'),
    (-math.inf, '-inf'),
  ],
)
def test_number(value, text):
  assert terminal.number(value) == text


def test_duration_and_percent():
  seconds = (5, 190, 7500, 100_800, 1e9, math.inf)
  shown = ['5s', '3m10s', '2h05m', '1d04h', 'over 1000d', '?']
  assert [terminal.duration(x) for x in seconds] == shown
  assert terminal.percent(9999, 10000) == '99.9%'
  assert terminal.percent(10, 10) == terminal.percent(0, 0) == '100%'
