"""Terminal output of a run."""

import collections
import contextlib
import io
import itertools
import logging as stdlib_logging
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

from absl import logging

from dreamer_tpu.metrics import progress_view
from dreamer_tpu.metrics.output import Output

_SPEEDS = {'fps/policy': '{} steps/s', 'fps/train': '{} replayed/s'}
_SCORES = {
  'episode/score': 'score {}',
  'eval/episode/score': 'eval score {}',
  'episode/length': 'length {}',
}
_LOSS = 'train/loss/'
_UNITS = ((1e12, 'T', 1e12), (1e9, 'G', 1e9), (1e6, 'M', 1e6), (1e4, 'k', 1e3))
# Maximum bytes of lines that wait while the stream fails.
_KEEP = 1 << 20
# Progress lines from which the remaining time is extrapolated.
_RECENT = 10
# Seconds between lines that only show that something goes on.
_PAUSE, _PAUSE_TTY = 30.0, 1.0


class Terminal:
  """Prints status lines, a progress line and a summary.

  On a terminal the progress is a bar with a table, rewritten in place; in a
  file or a pipe it is a line. Every line is flushed. A stream that fails, such
  as that of a closed terminal, is an `Output` like others.

  Args:
    stream: Standard output by default.
    enabled: Whether to print anything.
    clock: Monotonic time in seconds.

  Attributes:
    outputs: The output of the stream; empty if nothing is printed.
  """

  def __init__(
    self,
    stream: TextIO | None = None,
    enabled: bool = True,
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    stream = stream or sys.stdout  # None if it was closed.
    self.outputs = []
    if enabled and stream:
      lines = _Stream(stream)
      self.outputs = [
        Output('stdout', lines, '/dev/stdout', keep=_KEEP, at_once=True)
      ]
    self._rewrite = bool(self.outputs) and stream.isatty()
    self._open_lines = 0  # Lines that are rewritten in place.
    self._clock = clock
    self._begin = clock()
    self._pause = _PAUSE_TTY if self._rewrite else _PAUSE
    self._pulsed = self._begin
    self._recent: collections.deque[tuple[float, int]] = collections.deque(
      maxlen=_RECENT
    )

  def log_status(self, text: str) -> None:
    """Prints a status line, such as `Compiling the train step.`."""
    self._print(text)

  def progress_line(self, text: str) -> None:
    """Prints a progress line, which replaces the previous one."""
    if self._rewrite:  # A wrapped line cannot be rewritten.
      width = shutil.get_terminal_size().columns - 1
      self._rewrite_lines(self.stamp(text)[:width])
    else:
      self._print(text)

  def pulse(self, text: str) -> None:
    """Prints a progress line, unless there was another line just before."""
    if self._clock() - self._pulsed >= self._pause:
      self.progress_line(text)

  @contextlib.contextmanager
  def working(self, text: str) -> Iterator[None]:
    """Prints a status line, and the time since then while the body runs."""
    self.log_status(f'{text}.')
    begin, done = self._clock(), threading.Event()

    def show() -> None:
      while not done.wait(self._pause):
        self.progress_line(f'{text}: {duration(self._clock() - begin)} so far.')

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
      yield
    finally:
      done.set()
      thread.join()

  def format_warnings(self) -> None:
    """Gives warnings the form of the other lines; they stay on stderr."""
    logging.get_absl_handler().setFormatter(_Formatter(self))

  def end_line(self) -> str:
    """Returns what has to be printed to stderr before another line."""
    end, self._open_lines = '\n' * bool(self._open_lines), 0
    return end

  def stamp(self, text: str) -> str:
    """Returns a line with the time since the start before it."""
    return f'[{duration(self._clock() - self._begin)}] {text}'

  def progress(
    self,
    step: int,
    total: int,
    metrics: Mapping[str, float],
    *,
    unit: str = 'step',
    note: str = '',
  ) -> None:
    """Prints the progress of training.

    Args:
      step: Agent steps so far, or another count.
      total: The count at the end of the run.
      metrics: Metrics by name, of which the score, the speeds and the losses
        are shown. The remaining time excludes `perf/compile_s`.
      unit: Name of the count.
      note: What else a user should know.
    """
    head = f'{unit} {number(step)}/{number(total)} ({percent(step, total)})'
    left = f'left {self._left(step, total, metrics)}'
    rows = {
      'speed': _select(metrics, _SPEEDS),
      'note': list(filter(None, [note])),
      'result': _select(metrics, _SCORES),
      'losses': _losses(metrics),
    }
    if not self._rewrite:
      loss = [f'loss {x}' for x in rows.pop('losses')]
      self._print(
        ' | '.join([head, left, *itertools.chain(*rows.values()), *loss])
      )
      return
    self._rewrite_lines(
      progress_view.render(
        self.stamp(f'{head}, {left}'),
        step / total if total > 0 else 1.0,
        {label: '  '.join(values) for label, values in rows.items()},
        shutil.get_terminal_size(),
      )
    )

  def summary(
    self,
    step: int,
    update: int,
    metrics: Mapping[str, float],
    shares: Mapping[str, float],
    logdir: str = '',
    *,
    done: bool = True,
  ) -> None:
    """Prints the result of the run and how its time was spent.

    Args:
      step: Agent steps of the run.
      update: Updates of the agent.
      metrics: Latest metrics by name, such as scores and `perf/goodput`.
      shares: Fraction of the time in each section.
      logdir: Directory of the run.
      done: False if the run stopped early.
    """
    end = 'done' if done else 'stopped, run again to resume'
    self._print(f'{end}: {step:,} steps, {update:,} updates')
    for name, text in (
      ('result', '  '.join(_select(metrics, _SCORES))),
      ('losses', ' '.join(_losses(metrics))),
      ('time', _times(shares, metrics)),
      ('logdir', logdir),
    ):
      if text:
        self._write(f'  {name:<7} {text}')

  def _left(self, step: int, total: int, metrics: Mapping[str, float]) -> str:
    """Extrapolates from recent lines only: the start of a run is slower."""
    now = self._clock() - metrics.get('perf/compile_s', 0.0)
    self._recent.append((now, step))
    begin, done = self._recent[0]
    if step >= total:
      return duration(0)
    if step <= done:
      return '?'
    return duration((now - begin) / (step - done) * (total - step))

  def _print(self, text: str) -> None:
    self._pulsed = self._clock()
    self._write(self.stamp(text))

  def _write(self, line: str) -> None:
    self._emit(f'{self.end_line()}{line}\n')

  def _rewrite_lines(self, text: str) -> None:
    """Writes lines in place of the last ones, without an end."""
    self._pulsed = self._clock()
    up = f'\x1b[{self._open_lines - 1}A' if self._open_lines > 1 else ''
    self._open_lines = text.count('\n') + 1
    self._emit(f'\r{up}\x1b[J{text}')

  def _emit(self, text: str) -> None:
    for output in self.outputs:
      output.write(text, len(text))


class _Formatter(stdlib_logging.Formatter):
  """Formats log records as lines of a terminal."""

  def __init__(self, terminal: Terminal) -> None:
    super().__init__()
    self._terminal = terminal

  def format(self, record: stdlib_logging.LogRecord) -> str:
    """Returns the line of a record."""
    text = f'{record.levelname.lower()}: {record.getMessage()}'
    return self._terminal.end_line() + self._terminal.stamp(text)


class _Stream:
  """Target of text, not buffered: at exit, nothing is left that could fail."""

  def __init__(self, stream: TextIO) -> None:
    self._stream = stream
    self._rest = b''
    try:
      self._file: int | None = stream.fileno()
    except (io.UnsupportedOperation, AttributeError):
      self._file = None  # In memory.

  def write(self, item: str) -> None:
    """Writes text, or the rest of it."""
    if self._file is None:
      self._stream.write(item)
      return
    self._rest = self._rest or item.encode(self._stream.encoding, 'replace')
    while self._rest:
      self._rest = self._rest[os.write(self._file, self._rest) :]

  def close(self) -> None:
    """Does nothing: the stream stays open for others."""


def number(value: float) -> str:
  """Formats a number compactly: 950, 12.4k, 3.1M, 0.00012."""
  size = abs(value)
  if not math.isfinite(value):
    return str(float(value))
  if size >= 1e15:
    return f'{value:.1e}'
  # Values that round up to 1000 use the next unit.
  for start, unit, scale in _UNITS:
    if size >= 0.9995 * start:
      return f'{value / scale:.3g}{unit}'
  if value == round(value):
    return str(int(value))
  return f'{value:.4g}' if size >= 100 else f'{value:.3g}'


def duration(seconds: float) -> str:
  """Returns a duration in its two largest units: 42s, 3m10s, 2h05m, 1d04h."""
  if not math.isfinite(seconds):
    return '?'
  seconds = max(0, round(seconds))
  if seconds < 60:
    return f'{seconds}s'
  if seconds < 3600:
    return f'{seconds // 60}m{seconds % 60:02d}s'
  if seconds < 86400:
    return f'{seconds // 3600}h{seconds % 3600 // 60:02d}m'
  days, hours = seconds // 86400, seconds % 86400 // 3600
  return f'{days}d{hours:02d}h' if days < 1000 else 'over 1000d'


def percent(part: float, whole: float) -> str:
  """Returns a percentage, rounded down so that only the end is 100%."""
  if whole <= 0:
    return '100%'
  return f'{math.floor(1000 * min(1, part / whole)) / 10:g}%'


def _select(
  metrics: Mapping[str, float], formats: Mapping[str, str]
) -> list[str]:
  return [
    text.format(number(metrics[name]))
    for name, text in formats.items()
    if name in metrics
  ]


def _losses(metrics: Mapping[str, float]) -> list[str]:
  losses = [
    f'{name.removeprefix(_LOSS)} {number(value)}'
    for name, value in metrics.items()
    if name.startswith(_LOSS) and name.count('/') == 2
  ]
  return [' '.join(losses)] if losses else []


def _times(shares: Mapping[str, float], metrics: Mapping[str, float]) -> str:
  parts = [
    f'{name} {share:.0%}'
    for name, share in sorted(shares.items(), key=lambda item: -item[1])
  ]
  if 'perf/goodput' in metrics:
    parts.append(f'(goodput {metrics["perf/goodput"]:.0%})')
  return '  '.join(parts)
