"""Terminal output of a run."""

import collections
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

_SPEEDS = {'fps/policy': '{} steps/s', 'fps/train': '{} replayed/s'}
_SCORES = {
  'episode/score': 'score {}',
  'eval/episode/score': 'eval score {}',
  'episode/length': 'length {}',
}
_LOSS = 'train/loss/'
_UNITS = ((1e12, 'T', 1e12), (1e9, 'G', 1e9), (1e6, 'M', 1e6), (1e4, 'k', 1e3))
# Progress lines from which the remaining time is extrapolated.
_RECENT = 10


class Terminal:
  """Prints status lines, a progress line and a summary.

  On a terminal the progress line is rewritten in place; in a file or a pipe
  each one is a line of its own. Every line is flushed.

  Args:
    stream: Standard output by default.
    enabled: Whether to print anything.
    clock: Monotonic time in seconds.
  """

  def __init__(
    self,
    stream: TextIO | None = None,
    enabled: bool = True,
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    self._stream = stream or sys.stdout
    self._enabled = enabled
    self._rewrite = enabled and self._stream.isatty()
    self._open_line = False
    self._clock = clock
    self._begin = clock()
    self._recent: collections.deque[tuple[float, int]] = collections.deque(
      maxlen=_RECENT
    )

  def log_status(self, text: str) -> None:
    """Prints a status line, such as `Compiling the train step.`."""
    self._print(text)

  def progress_line(self, text: str) -> None:
    """Prints a progress line, which replaces the previous one."""
    self._print(text, rewrite=True)

  def progress(
    self,
    step: int,
    total: int,
    metrics: Mapping[str, float],
    *,
    unit: str = 'step',
  ) -> None:
    """Prints the progress of training.

    Args:
      step: Agent steps so far, or another count.
      total: The count at the end of the run.
      metrics: Metrics by name, of which the score, the speeds and the losses
        are shown. The remaining time excludes `perf/compile_s`.
      unit: Name of the count.
    """
    # A narrow terminal cuts off the end of the line: the losses.
    parts = [
      f'{unit} {number(step)}/{number(total)} ({percent(step, total)})',
      f'left {self._left(step, total, metrics)}',
      *_select(metrics, _SPEEDS),
      *_select(metrics, _SCORES),
      *_losses(metrics),
    ]
    self.progress_line(' | '.join(parts))

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
      ('losses', ' '.join(_losses(metrics)).removeprefix('loss ')),
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

  def _print(self, text: str, rewrite: bool = False) -> None:
    elapsed = duration(self._clock() - self._begin)
    self._write(f'[{elapsed}] {text}', rewrite)

  def _write(self, line: str, rewrite: bool = False) -> None:
    if not self._enabled:
      return
    if not self._rewrite:
      self._stream.write(line + '\n')
    elif rewrite:
      # A wrapped line cannot be rewritten.
      line = line[: shutil.get_terminal_size().columns - 1]
      self._stream.write('\r\x1b[2K' + line)
      self._open_line = True
    else:
      self._stream.write('\n' * self._open_line + line + '\n')
      self._open_line = False
    self._stream.flush()


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
  return ['loss ' + ' '.join(losses)] if losses else []


def _times(shares: Mapping[str, float], metrics: Mapping[str, float]) -> str:
  parts = [
    f'{name} {share:.0%}'
    for name, share in sorted(shares.items(), key=lambda item: -item[1])
  ]
  if 'perf/goodput' in metrics:
    parts.append(f'(goodput {metrics["perf/goodput"]:.0%})')
  return '  '.join(parts)
