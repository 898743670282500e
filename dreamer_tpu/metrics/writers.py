"""Metric outputs of a run."""

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics import (
  jsonl,
  output,
  scope,
  tensorboard,
  video,
  wandb_run,
)
from dreamer_tpu.metrics.output import Output
from dreamer_tpu.metrics.terminal import Terminal

_PACKAGES = {
  'tensorboard': ('clu', 'tensorflow', 'tensorboard'),
  'wandb': ('wandb',),
  'scope': ('scope', 'elements', 'av'),
}
# Maximum bytes that wait in an output: of lines, and of metrics with videos.
KEEP_LINES, KEEP_METRICS = 16 << 20, 128 << 20
# Maximum seconds that the start of a run waits for W&B.
_START = 30.0


class Writers:
  """Writes metrics and scores to a log directory, on process 0.

  - 'log': `terminal` prints to the terminal; otherwise it is silent.
  - 'jsonl': metrics.jsonl, scores.jsonl, and the latest video of each name as
    videos/NAME.gif.
  - 'tensorboard': event files with scalars, histograms, images, videos and
    the configuration as hyperparameters.
  - 'wandb': the same to Weights & Biases.
  - 'scope': scalars, images and videos for Scope.

  Each of them is an `Output` of its own, so that none waits for another and
  the failure of one is only told and counted. Lines of JSON are on disk when a
  write returns. A write waits while more than `KEEP_METRICS` are queued for a
  slow but working output.

  Use as a context manager, or call `close` at the end.

  Args:
    logdir: Directory, local or `gs://`; created if missing.
    outputs: Names from the list above.
    config: The nested configuration.
    resume_step: Agent steps at which the run starts; 0 for a new run. Later
      metrics of an earlier process are dropped. None keeps everything.
    terminal: Terminal of the run; by default a new one.
    clock: Monotonic time in seconds.

  Raises:
    UserError: W&B refuses to start, or the directory is not writable.
  """

  def __init__(
    self,
    logdir: epath.PathLike,
    outputs: Sequence[str],
    config: Mapping[str, Any] | None = None,
    *,
    resume_step: int | None = None,
    terminal: Terminal | None = None,
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    self._logdir = epath.Path(logdir)
    self._config = config or {}
    self._outputs: dict[str, Output] = {}
    self._closed = False
    self._clock = clock
    self.terminal = terminal or Terminal(enabled='log' in outputs)
    try:
      self._logdir.mkdir(parents=True, exist_ok=True)
      if 'jsonl' in outputs:
        self._open_files(resume_step)
    except OSError as e:
      raise UserError(
        f'logdir {str(logdir)!r} cannot be written '
        f'({e.strerror or e}); choose another --logdir'
      ) from e
    if 'tensorboard' in outputs:
      self._open_tensorboard(resume_step)
    if 'scope' in outputs:
      self._add('scope', scope.Scope(logdir, resume_step), KEEP_METRICS)
    if 'wandb' in outputs:
      self._open_wandb()

  def write(
    self, step: int, metrics: Mapping[str, Any], *, frames: int, update: int
  ) -> None:
    """Writes metrics.

    Args:
      step: Agent steps over all hosts.
      metrics: Host values by name: scalars, histograms [N], images as uint8
        [H, W, C], and videos as uint8 [T, H, W, C]. Arrays must not change
        later.
      frames: Environment steps, including action repeat.
      update: Updates of the agent.

    Raises:
      ValueError: A value has another rank.
    """
    metrics = {name: np.asarray(value) for name, value in metrics.items()}
    for name, value in metrics.items():
      if value.ndim not in (0, 1, 3, 4):
        raise ValueError(f'metric {name!r} has shape {value.shape}')
    head = dict(step=step, frames=frames, update=update, time=time.time())
    scalars = {name: x for name, x in metrics.items() if x.ndim == 0}
    self._write_line('metrics.jsonl', {**head, **scalars})
    size = sum(value.nbytes for value in metrics.values())
    self._write('event files', ('metrics', (step, metrics)), size)
    self._write('scope', (step, metrics), size)
    self._write('Weights & Biases', (step, metrics), size)
    for name, value in metrics.items():
      if value.ndim == 4:
        self._write('videos', (name, value), value.nbytes)

  def write_score(
    self,
    step: int,
    score: float,
    length: int,
    mode: str,
    stats: Mapping[str, float] | None = None,
  ) -> None:
    """Writes a finished episode to scores.jsonl.

    Args:
      step: Agent steps over all hosts at its end.
      score: Sum of its rewards.
      length: Its number of agent steps.
      mode: 'train' or 'eval'.
      stats: Its statistics, of which the maxima ('epstats/NAME/max') are
        written, such as the counts of Crafter's achievements.
    """
    episode = {'episode/score': score, 'episode/length': length, 'mode': mode}
    maxima = {k: v for k, v in (stats or {}).items() if k.endswith('/max')}
    self._write_line('scores.jsonl', {'step': step, **episode, **maxima})

  def stats(self) -> dict[str, float]:
    """Returns the failed tries and the lost lines of all outputs so far."""
    outputs = [*self._outputs.values(), *self.terminal.outputs]
    return {
      'output/failures': sum(x.failures for x in outputs),
      'output/lost': sum(x.lost for x in outputs),
    }

  def retry(self) -> None:
    """Tries failing outputs again, without waiting for them."""
    for x in self._outputs.values():
      x.retry()

  def close(self) -> None:
    """Flushes and closes everything; a second call does nothing."""
    if self._closed:
      return
    self._closed = True
    outputs = self._outputs.values()
    for x in outputs:
      x.end()
    deadline = time.monotonic() + output.END
    for x in outputs:
      x.join(max(0.0, deadline - time.monotonic()))

  def __enter__(self) -> 'Writers':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _write_line(self, name: str, values: Mapping[str, Any]) -> None:
    if name in self._outputs:
      line = jsonl.line(values)
      self._write(name, line, len(line))

  def _write(self, name: str, item: Any, size: int) -> None:
    if name in self._outputs:
      self._outputs[name].write(item, size)

  def _open_files(self, resume_step: int | None) -> None:
    for name in ('metrics.jsonl', 'scores.jsonl'):
      file = jsonl.JsonLines(self._logdir / name, resume_step)
      self._add(name, file, KEEP_LINES, at_once=True)
    self._add('videos', video.Videos(self._logdir / 'videos'), KEEP_METRICS)

  def _open_tensorboard(self, resume_step: int | None) -> None:
    files = tensorboard.TensorBoard(self._logdir, resume_step)
    self._add('event files', files, KEEP_METRICS).write(
      ('hparams', self._config), 0
    )

  def _open_wandb(self) -> None:
    """Starts W&B, and waits for it, because it may refuse to start."""
    run = wandb_run.Wandb(self._logdir, self._config, self.terminal.log_status)
    started = self._add('Weights & Biases', run, KEEP_METRICS)
    started.write(None, 0)
    if not started.wait(_START):
      self.terminal.log_status('Weights & Biases: no answer yet; going on.')
    if isinstance(started.error, UserError):
      for x in self._outputs.values():
        x.abandon()
      raise started.error

  def _add(
    self,
    name: str,
    target: output.Target,
    keep: int,
    at_once: bool = False,
  ) -> Output:
    self._outputs[name] = Output(
      name, target, self._logdir, keep=keep, at_once=at_once, clock=self._clock
    )
    return self._outputs[name]


def check_installed(outputs: Sequence[str]) -> None:
  """Checks that the packages of outputs are installed, without importing them.

  Raises:
    UserError: A package is missing.
  """
  for name in outputs:
    for package in _PACKAGES.get(name, ()):
      spec = importlib.util.find_spec(package)
      if spec is None or spec.origin is None:  # A folder has no origin.
        raise UserError(
          f'metrics.outputs: {name!r} needs the package {package}, which is '
          f'not installed; pip install {package}, or leave {name!r} out of '
          'metrics.outputs.'
        )
