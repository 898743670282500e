"""Terminal output, in a file and at a terminal."""

import io
import math
import re
import subprocess
import sys

import pytest

from dreamer_tpu.metrics import terminal
from dreamer_tpu.metrics.terminal import Terminal
from tests.helpers.clock import Clock


class Screen(io.StringIO):
  def isatty(self):
    return True


METRICS = {
  'fps/policy': 312.4,
  'episode/score': 187.25,
  'train/loss/dyn': 1.2345,
  'train/loss/image': 34.21,
  'perf/goodput': 0.9,
}
SHARES = {'acting': 0.25, 'learning': 0.5}


def test_in_a_file():
  stream, clock = io.StringIO(), Clock(100)
  terminal = Terminal(stream, clock=clock)
  terminal.log_status('Filling the replay.')
  assert stream.getvalue() == '[0s] Filling the replay.\n'
  terminal.progress(12_345, 1_000_000, METRICS)
  clock.advance(100)
  terminal.progress(506_172, 1_000_000, METRICS)
  clock.advance(100)
  terminal.summary(1_000_000, 31_250, METRICS, SHARES, 'runs/a')
  shown = '| 312.4 steps/s | score 187.2 | loss dyn 1.23 image 34.2'
  assert stream.getvalue().splitlines()[1:] == [
    f'[0s] step 12.3k/1M (1.2%) | left ? {shown}',
    f'[1m40s] step 506k/1M (50.6%) | left 1m40s {shown}',
    '[3m20s] done: 1,000,000 steps, 31,250 updates',
    '  result  score 187.2',
    '  losses  dyn 1.23 image 34.2',
    '  time    learning 50%  acting 25%  (goodput 90%)',
    '  logdir  runs/a',
  ]


def shown(text):
  """Returns the lines that a terminal shows."""
  lines, row = [''], 0
  for part in re.split(r'(\r|\n|\x1b\[\d*[A-Zm])', text):
    if part == '\n':
      row += 1
      lines += [''] * (row == len(lines))
    elif part == '\x1b[J':
      lines[row:] = ['']
    elif up := re.fullmatch(r'\x1b\[(\d+)A', part):
      row -= int(up[1])
    elif not part.startswith(('\r', '\x1b')):
      lines[row] += part
  return [line.rstrip() for line in lines]


def test_a_screen_is_rewritten(monkeypatch):
  monkeypatch.setenv('COLUMNS', '60')
  stream, clock = Screen(), Clock()
  terminal = Terminal(stream, clock=clock)
  terminal.log_status('Compiling.')
  terminal.progress_line('long ' * 30)
  for step in (1, 250, 500):
    terminal.progress(step, 1000, METRICS, note='no episode has ended yet')
  screen = shown(stream.getvalue())
  assert screen[0] == '[0s] Compiling.'
  assert re.fullmatch(
    r'\[0s\] step 500/1000 \(50%\), left 0s [━╸╺]+', screen[1]
  )
  assert [line.split(maxsplit=1) for line in screen[2:]] == [
    ['speed', '312.4 steps/s'],
    ['note', 'no episode has ended yet'],
    ['result', 'score 187.2'],
    ['losses', 'dyn 1.23 image 34.2'],
  ]
  assert max(map(len, screen)) < 60
  terminal.log_status('Saving.')
  terminal.progress(750, 1000, {})
  screen = shown(stream.getvalue())
  assert screen[1].startswith('[0s] step 500/1000')
  assert screen[6] == '[0s] Saving.'
  assert screen[7].startswith('[0s] step 750/1000')
  assert len(screen) == 8


def test_a_low_screen_shows_what_fits(monkeypatch):
  monkeypatch.setenv('COLUMNS', '30')
  monkeypatch.setenv('LINES', '4')
  stream = Screen()
  terminal = Terminal(stream)
  for step in (1, 2):
    terminal.progress(
      step, 10, METRICS | {f'train/loss/{i}': i for i in range(50)}
    )
  assert len(shown(stream.getvalue())) == 3


def left(stream):
  """Returns the remaining time in the last line."""
  return re.search(r'left (\w+)$', stream.getvalue())[1]


def test_the_time_left_follows_the_recent_rate():
  stream, clock = io.StringIO(), Clock()
  terminal = Terminal(stream, clock=clock)
  terminal.progress(0, 10_000, {})
  clock.advance(1000)  # For example, a compiler.
  for index in range(1, 12):
    terminal.progress(100 * index, 10_000, {})
    clock.advance(0.5)
  # 89 times 0.5 s; the rate since the start gives more than two hours.
  assert left(stream) == '44s'


def test_the_time_left_excludes_compilation():
  stream, clock = io.StringIO(), Clock()
  terminal = Terminal(stream, clock=clock)
  terminal.progress(0, 10_000, {'perf/compile_s': 30.0})
  clock.advance(10)
  terminal.progress(500, 10_000, {'perf/compile_s': 30.0})
  clock.advance(101)
  terminal.progress(550, 10_000, {'perf/compile_s': 130.0})
  assert left(stream) == '3m09s'  # 9450 steps at 50 a second.


def test_without_the_log_output(capsys):
  terminal = Terminal(enabled=False)
  terminal.log_status('x')
  terminal.progress(1, 2, {})
  terminal.summary(2, 1, {}, {})
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


def test_lines_that_show_that_something_goes_on():
  clock, stream = Clock(), io.StringIO()
  terminal = Terminal(stream, clock=clock)
  for _ in range(70):
    clock.advance(1)
    terminal.pulse('evaluation: 0/8 episodes')
  with terminal.working('Compiling'):
    clock.advance(5)
  terminal.progress(1, 2, {}, note='no episode has ended yet')
  assert stream.getvalue().splitlines() == [
    '[30s] evaluation: 0/8 episodes',
    '[1m00s] evaluation: 0/8 episodes',
    '[1m10s] Compiling.',
    '[1m15s] step 1/2 (50%) | left ? | no episode has ended yet',
  ]


def test_work_that_takes_long_shows_its_time(monkeypatch):
  monkeypatch.setattr(terminal, '_PAUSE', 0.01)
  clock, stream = Clock(), io.StringIO()
  with Terminal(stream, clock=clock).working('Compiling'):
    clock.advance(90)
    while 'Compiling: 1m30s so far.' not in stream.getvalue():
      pass


def test_warnings_look_like_other_lines():
  program = (
    'from absl import logging\n'
    'from dreamer_tpu.metrics.terminal import Terminal\n'
    'logging.use_absl_handler()\n'
    'Terminal(clock=lambda: 7.0).format_warnings()\n'
    'logging.warning("Task %s: a line.", "x")\n'
  )
  ended = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True
  )
  assert ended.stderr.splitlines()[-1] == '[0s] warning: Task x: a line.'
