"""The outputs of a run, behind one object."""

import collections
import concurrent.futures
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.config import flatten
from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics import jsonl, video
from dreamer_tpu.metrics.tensorboard import TensorBoard
from dreamer_tpu.metrics.terminal import Terminal
from dreamer_tpu.metrics.wandb_run import WandbRun

# Calls with videos that may wait for the background thread, which takes longer
# to encode them than a small model to make them: they would pile up in memory.
BACKLOG = 4


class Writers:
  """Writes metrics and scores to a log directory; for process 0 alone.

  - 'log': `terminal` prints to the terminal; without it, `terminal` is silent.
  - 'jsonl': metrics.jsonl and scores.jsonl, and the newest video of each name
    as videos/NAME.gif.
  - 'tensorboard': event files with scalars, histograms, images, videos and
    the configuration as hyper-parameters.
  - 'wandb': the same to Weights & Biases, if it is installed.

  All but the terminal and the lines of JSON is written by one background
  thread. What fails there is raised by the next call. When it is `BACKLOG`
  calls with videos behind, the next one waits for it.

  Use it as a context manager, or call `close` at the end.
  """

  def __init__(
    self,
    logdir: epath.PathLike,
    outputs: Sequence[str],
    config: Any = None,
    *,
    resume_step: int | None = None,
    terminal: Terminal | None = None,
  ) -> None:
    """Opens the outputs, and lets go of what lies after `resume_step`.

    Args:
      logdir: The directory, local or `gs://`; it is made where missing.
      outputs: The outputs to open, by the names above.
      config: The configuration as a mapping or a ConfigDict, if any.
      resume_step: Agent steps at which the run starts, 0 for a fresh one.
        What an earlier process wrote after them would make the curves step
        back, so it is dropped. None keeps everything.
      terminal: The terminal, where the run shows itself there already.

    Raises:
      UserError: An output lacks a package, or the directory cannot be
        written.
    """
    self._logdir = epath.Path(logdir)
    self._files = 'jsonl' in outputs
    self._failed: list[concurrent.futures.Future[Any]] = []
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'metrics')
    self._behind: collections.deque[concurrent.futures.Future[Any]] = (
      collections.deque()
    )
    self._closed = False
    self.terminal = terminal or Terminal(enabled='log' in outputs)
    try:
      self._open(outputs, resume_step, config)
    except OSError as e:
      raise UserError(
        f'logdir {str(logdir)!r} cannot be written '
        f'({e.strerror or e}); choose another --logdir'
      ) from e

  def write(
    self, step: int, metrics: Mapping[str, Any], *, frames: int, update: int
  ) -> None:
    """Writes metrics of one moment.

    Args:
      step: Agent steps over all hosts.
      metrics: By name, on the host: scalars; histograms as rank 1; images as
        uint8 [H, W, C]; videos as uint8 [T, H, W, C].
      frames: Environment steps, action repeat included.
      update: Updates of the agent.

    Raises:
      ValueError: A value has another rank.
    """
    self._raise_failures()
    metrics = {name: np.asarray(value) for name, value in metrics.items()}
    for name, value in metrics.items():
      if value.ndim not in (0, 1, 3, 4):
        raise ValueError(f'metric {name!r} has shape {value.shape}')
    if self._files:
      line = dict(step=step, frames=frames, update=update, time=time.time())
      scalars = {name: x for name, x in metrics.items() if x.ndim == 0}
      self._metrics.append({**line, **scalars})
      for name, value in metrics.items():
        if value.ndim == 4:
          path = self._logdir / 'videos' / f'{name}.gif'
          self._submit(video.write_gif, path, value)
    if self._tensorboard:
      self._tensorboard.write(step, metrics)
      self._tensorboard.flush()
    if self._wandb:
      self._wandb.write(step, metrics)
    if any(value.ndim == 4 for value in metrics.values()):
      self._behind.append(self._thread.submit(int))
    if len(self._behind) > BACKLOG:
      self._behind.popleft().result()

  def write_score(
    self, step: int, score: float, length: int, mode: str
  ) -> None:
    """Writes one finished episode to scores.jsonl.

    Args:
      step: Agent steps over all hosts at its end.
      score: Sum of its rewards.
      length: Its agent steps.
      mode: 'train' or 'eval'.
    """
    if not self._files:
      return
    self._raise_failures()
    self._scores.append(
      {
        'step': step,
        'episode/score': score,
        'episode/length': length,
        'mode': mode,
      }
    )

  def flush(self) -> None:
    """Waits until all that was written lies in its files."""
    if self._files:
      self._submit(self._metrics.flush)
      self._submit(self._scores.flush)
    if self._tensorboard:
      self._tensorboard.flush()
    self._thread.submit(int).result()
    self._raise_failures()

  def close(self) -> None:
    """Flushes and closes everything. A second call does nothing."""
    if self._closed:
      return
    self._closed = True
    if self._tensorboard:
      self._tensorboard.close()
    if self._wandb:
      self._wandb.close()
    self._thread.shutdown(wait=True)
    if self._files:
      self._metrics.close()
      self._scores.close()
    self._raise_failures()

  def __enter__(self) -> 'Writers':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _open(
    self, outputs: Sequence[str], resume_step: int | None, config: Any
  ) -> None:
    self._logdir.mkdir(parents=True, exist_ok=True)
    if self._files:
      self._metrics = jsonl.JsonLines(
        self._logdir / 'metrics.jsonl', resume_step, submit=self._submit
      )
      self._scores = jsonl.JsonLines(
        self._logdir / 'scores.jsonl', resume_step, submit=self._submit
      )
    self._tensorboard = None
    if 'tensorboard' in outputs:
      self._tensorboard = TensorBoard(self._logdir, self._submit, resume_step)
      if config is not None:
        self._tensorboard.hparams(hparams(config))
    self._wandb = None
    if 'wandb' in outputs:
      nested = config.to_dict() if hasattr(config, 'to_dict') else config
      self._wandb = WandbRun(self._logdir, self._submit, nested or {})
      self.terminal.log_status(f'Weights & Biases: {self._wandb.place}')

  def _submit(
    self, function: Callable[..., Any], *args: Any
  ) -> concurrent.futures.Future[Any]:
    future = self._thread.submit(function, *args)
    future.add_done_callback(self._keep_failure)
    return future

  def _keep_failure(self, future: concurrent.futures.Future[Any]) -> None:
    if not future.cancelled() and future.exception() is not None:
      self._failed.append(future)

  def _raise_failures(self) -> None:
    if self._failed:
      # One failure brings others: the first is the cause.
      first, self._failed = self._failed[0], []
      first.result()


def hparams(config: Any) -> dict[str, Any]:
  """Returns a nested configuration as flat numbers, booleans and strings."""
  return {
    key: value if isinstance(value, (bool, int, float, str)) else str(value)
    for key, value in flatten(config).items()
  }
