"""What a person at a terminal sees of a run."""

import collections
import math
import shutil
import sys
import time
from collections.abc import Mapping
from typing import TextIO

_LOSS = 'train/loss/'
# Progress lines from which the time that is left is extrapolated.
_RECENT = 10


class View:
  """Status lines, a progress line, and a summary.

  At a terminal the progress line rewrites itself; in a file or a pipe each
  one is a line of its own. Every line appears at once.
  """

  def __init__(
    self, stream: TextIO | None = None, enabled: bool = True
  ) -> None:
    """Args: stream: standard output by default. enabled: False prints nothing."""
    self._stream = stream or sys.stdout
    self._enabled = enabled
    self._rewrite = enabled and self._stream.isatty()
    self._open_line = False
    self._begin = time.monotonic()
    self._recent: collections.deque[tuple[float, int]] = collections.deque(
      maxlen=_RECENT
    )

  def status(self, text: str) -> None:
    """Says what the run is busy with, as in `compiling the train step`."""
    self._print(f'[{duration(self._elapsed())}] {text}')

  def activity(self, text: str) -> None:
    """Says what has just happened, in place of what it said before."""
    self._print(f'[{duration(self._elapsed())}] {text}', rewrite=True)

  def progress(
    self,
    step: int,
    total: int,
    metrics: Mapping[str, float],
    *,
    unit: str = 'step',
  ) -> None:
    """Shows how far the run is.

    Args:
      step: Agent steps so far, or what else is counted.
      total: The same at the end of the run.
      metrics: Under the names of the log; the score, the speeds and the
        losses are picked out where they are there. `perf/compile_s` does not
        count for the time that is left.
      unit: What is counted.
    """
    # What a narrow terminal cuts off are the losses.
    parts = [
      f'{unit} {number(step)}/{number(total)} ({percent(step, total)})',
      f'left {self._left(step, total, metrics)}',
      *_speeds(metrics),
      *_scores(metrics),
      *_losses(metrics),
    ]
    line = f'[{duration(self._elapsed())}] ' + ' | '.join(parts)
    self._print(line, rewrite=True)

  def summary(
    self,
    step: int,
    update: int,
    metrics: Mapping[str, float],
    logdir: str = '',
    *,
    done: bool = True,
  ) -> None:
    """Ends the run with its result and where the time went.

    Args:
      step: Agent steps of the run.
      update: Updates of the agent.
      metrics: Scores, `timer/NAME/frac` and `perf/goodput`, where known.
      logdir: Where everything lies.
      done: Whether it has got to its end.
    """
    end = 'done' if done else 'stopped, start again to go on'
    self._print(
      f'[{duration(self._elapsed())}] {end}: {step:,} steps, {update:,} updates'
    )
    for name, text in (
      ('result', '  '.join(_scores(metrics))),
      ('losses', ' '.join(_losses(metrics)).removeprefix('loss ')),
      ('time', _shares(metrics)),
      ('logdir', logdir),
    ):
      if text:
        self._print(f'  {name:<7} {text}')

  def _elapsed(self) -> float:
    return time.monotonic() - self._begin

  def _left(self, step: int, total: int, metrics: Mapping[str, float]) -> str:
    """Extrapolates from the last few lines: the start soon counts no more."""
    now = time.monotonic() - metrics.get('perf/compile_s', 0.0)
    self._recent.append((now, step))
    begin, done = self._recent[0]
    if step >= total:
      return duration(0)
    if step <= done:
      return '?'
    return duration((now - begin) / (step - done) * (total - step))

  def _print(self, line: str, rewrite: bool = False) -> None:
    if not self._enabled:
      return
    if not self._rewrite:
      self._stream.write(line + '\n')
    elif rewrite:
      # A line that wraps could not be rewritten.
      line = line[: shutil.get_terminal_size().columns - 1]
      self._stream.write('\r\x1b[2K' + line)
      self._open_line = True
    else:
      self._stream.write('\n' * self._open_line + line + '\n')
      self._open_line = False
    self._stream.flush()


def number(value: float) -> str:
  """Returns a number in short form: 950, 12.4k, 3.1M, 0.00012."""
  value = float(value)
  if not math.isfinite(value):
    return str(value)
  for size, unit in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
    # What rounds up to 1000 belongs to the next unit.
    scale = 1e3 if unit == 'k' else size
    if abs(value) >= size * 0.9995:
      return (
        f'{value / scale:.3g}{unit}' if abs(value) < 1e15 else f'{value:.1e}'
      )
  if value == round(value):
    return str(int(value))
  digits = f'{value:.4g}' if abs(value) >= 100 else f'{value:.3g}'
  return digits


def duration(seconds: float) -> str:
  """Returns a time in its two largest units: 42s, 3m10s, 2h05m, 1d04h."""
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
  """Returns a share, rounded down so that 100% means the end."""
  if whole <= 0:
    return '100%'
  return f'{math.floor(1000 * min(1, part / whole)) / 10:g}%'


def _speeds(metrics: Mapping[str, float]) -> list[str]:
  parts = []
  if 'fps/policy' in metrics:
    parts.append(f'{number(metrics["fps/policy"])} steps/s')
  if 'fps/train' in metrics:
    parts.append(f'{number(metrics["fps/train"])} replayed/s')
  return parts


def _scores(metrics: Mapping[str, float]) -> list[str]:
  parts = []
  for name, label in (
    ('episode/score', 'score'),
    ('eval/episode/score', 'eval score'),
    ('episode/length', 'length'),
  ):
    if name in metrics:
      parts.append(f'{label} {number(metrics[name])}')
  return parts


def _losses(metrics: Mapping[str, float]) -> list[str]:
  losses = [
    f'{name.removeprefix(_LOSS)} {number(value)}'
    for name, value in metrics.items()
    if name.startswith(_LOSS) and name.count('/') == 2
  ]
  return ['loss ' + ' '.join(losses)] if losses else []


def _shares(metrics: Mapping[str, float]) -> str:
  shares = {
    name.split('/')[1]: value
    for name, value in metrics.items()
    if name.startswith('timer/') and name.endswith('/frac')
  }
  parts = [
    f'{name} {value:.0%}'
    for name, value in sorted(shares.items(), key=lambda item: -item[1])
  ]
  if 'perf/goodput' in metrics:
    parts.append(f'(goodput {metrics["perf/goodput"]:.0%})')
  return '  '.join(parts)
