"""Metric outputs of a run."""

import collections
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics import jsonl, video
from dreamer_tpu.metrics.tensorboard import TensorBoard
from dreamer_tpu.metrics.terminal import Terminal
from dreamer_tpu.metrics.wandb_run import WandbRun

# Maximum number of queued writes with videos. A small model makes them faster
# than the background thread encodes them, so they would fill the memory.
BACKLOG = 4


class Writers:
  """Writes metrics and scores to a log directory, on process 0.

  - 'log': `terminal` prints to the terminal; otherwise it is silent.
  - 'jsonl': metrics.jsonl, scores.jsonl, and the latest video of each name as
    videos/NAME.gif.
  - 'tensorboard': event files with scalars, histograms, images, videos and
    the configuration as hyperparameters.
  - 'wandb': the same to Weights & Biases.

  One background thread writes everything except the terminal and JSON lines.
  Its errors are raised by the next call. A write blocks while more than
  `BACKLOG` writes with videos are queued.

  Use as a context manager, or call `close` at the end.

  Args:
    logdir: Directory, local or `gs://`; created if missing.
    outputs: Names from the list above.
    config: The nested configuration.
    resume_step: Agent steps at which the run starts; 0 for a new run. Later
      metrics of an earlier process are dropped. None keeps everything.
    terminal: Terminal of the run; by default a new one.

  Raises:
    UserError: An output lacks a package, or the directory is not writable.
  """

  def __init__(
    self,
    logdir: epath.PathLike,
    outputs: Sequence[str],
    config: Mapping[str, Any] | None = None,
    *,
    resume_step: int | None = None,
    terminal: Terminal | None = None,
  ) -> None:
    self._logdir = epath.Path(logdir)
    self._pending: collections.deque[Future[Any]] = collections.deque()
    self._thread = ThreadPoolExecutor(1, 'metrics')
    self._videos: collections.deque[Future[Any]] = collections.deque()
    self._closed = False
    self.terminal = terminal or Terminal(enabled='log' in outputs)
    try:
      self._open(outputs, resume_step, config or {})
    except OSError as e:
      raise UserError(
        f'logdir {str(logdir)!r} cannot be written '
        f'({e.strerror or e}); choose another --logdir'
      ) from e

  def write(
    self, step: int, metrics: Mapping[str, Any], *, frames: int, update: int
  ) -> None:
    """Writes metrics.

    Args:
      step: Agent steps over all hosts.
      metrics: Host values by name: scalars, histograms [N], images as uint8
        [H, W, C], and videos as uint8 [T, H, W, C].
      frames: Environment steps, including action repeat.
      update: Updates of the agent.

    Raises:
      ValueError: A value has another rank.
    """
    self._raise_failures()
    metrics = {name: np.asarray(value) for name, value in metrics.items()}
    for name, value in metrics.items():
      if value.ndim not in (0, 1, 3, 4):
        raise ValueError(f'metric {name!r} has shape {value.shape}')
    videos = {name: x for name, x in metrics.items() if x.ndim == 4}
    if self._metrics:
      line = dict(step=step, frames=frames, update=update, time=time.time())
      scalars = {name: x for name, x in metrics.items() if x.ndim == 0}
      self._metrics.append({**line, **scalars})
      for name, value in videos.items():
        path = self._logdir / 'videos' / f'{name}.gif'
        self._submit(video.write_gif, path, value)
    if self._tensorboard:
      self._tensorboard.write(step, metrics)
    if self._wandb:
      self._wandb.write(step, metrics)
    if videos:
      self._videos.append(self._thread.submit(int))
    if len(self._videos) > BACKLOG:
      self._videos.popleft().result()

  def write_score(
    self, step: int, score: float, length: int, mode: str
  ) -> None:
    """Writes a finished episode to scores.jsonl.

    Args:
      step: Agent steps over all hosts at its end.
      score: Sum of its rewards.
      length: Its number of agent steps.
      mode: 'train' or 'eval'.
    """
    self._raise_failures()
    if self._scores:
      episode = {'episode/score': score, 'episode/length': length}
      self._scores.append({'step': step, **episode, 'mode': mode})

  def close(self) -> None:
    """Flushes and closes everything; a second call does nothing."""
    if self._closed:
      return
    self._closed = True
    if self._tensorboard:
      self._tensorboard.close()
    if self._wandb:
      self._wandb.close()
    self._thread.shutdown(wait=True)
    if self._metrics and self._scores:
      self._metrics.close()
      self._scores.close()
    self._raise_failures()

  def __enter__(self) -> 'Writers':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _open(
    self,
    outputs: Sequence[str],
    resume_step: int | None,
    config: Mapping[str, Any],
  ) -> None:
    self._logdir.mkdir(parents=True, exist_ok=True)
    self._metrics = self._scores = self._tensorboard = self._wandb = None
    if 'jsonl' in outputs:
      self._metrics, self._scores = (
        jsonl.JsonLines(self._logdir / name, resume_step, self._submit)
        for name in ('metrics.jsonl', 'scores.jsonl')
      )
    if 'tensorboard' in outputs:
      self._tensorboard = TensorBoard(self._logdir, self._submit, resume_step)
      self._tensorboard.write_hparams(config)
    if 'wandb' in outputs:
      self._wandb = WandbRun(self._logdir, self._submit, config)
      self.terminal.log_status(f'Weights & Biases: {self._wandb.location}')

  def _submit(self, function: Callable[..., Any], *args: Any) -> None:
    self._pending.append(self._thread.submit(function, *args))

  def _raise_failures(self) -> None:
    while self._pending and self._pending[0].done():
      self._pending.popleft().result()
