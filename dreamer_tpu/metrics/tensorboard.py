"""The TensorBoard output, as seen from the process that trains."""

import atexit
import concurrent.futures
import importlib.util
import multiprocessing
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics import events


class TensorBoard:
  """Writes metrics to event files in a directory, in the background.

  Another process does it (`events.serve`), which a thread of this one feeds.
  """

  def __init__(
    self,
    logdir: epath.PathLike,
    submit: Callable[..., concurrent.futures.Future[Any]],
    last_step: int | None = None,
  ) -> None:
    """Starts the process.

    Args:
      logdir: Directory of the event files.
      submit: Runs a function with its arguments on the background thread.
      last_step: What earlier files hold after this step is dropped; None
        keeps it all.

    Raises:
      UserError: A package is missing.
    """
    for name in ('clu', 'tensorflow', 'tensorboard'):
      if importlib.util.find_spec(name) is None:
        raise UserError(
          f"metrics.outputs: 'tensorboard' needs the package {name!r}, which "
          "is not installed; install it or use outputs ('log', 'jsonl')"
        )
    self._submit = submit
    context = multiprocessing.get_context('spawn')
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(
      target=events.serve,
      args=(theirs, os.fspath(logdir), last_step),
      name='tensorboard',
      daemon=True,
    )
    self._process.start()
    theirs.close()
    # It ignores SIGTERM, with which multiprocessing would end it.
    atexit.register(self._pipe.close)
    self.flush()

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Queues scalars, histograms [N], images [H, W, C], videos [T, H, W, C].

    Args:
      step: Agent steps.
      metrics: Host values by name; images and videos are uint8. They must not
        change afterwards.
    """
    arrays = {name: np.asarray(value) for name, value in metrics.items()}
    self._submit(self._call, 'write', step, arrays)

  def hparams(self, values: Mapping[str, Any]) -> None:
    """Queues the hyper-parameters of the run, a flat dictionary."""
    self._submit(self._call, 'hparams', values)

  def flush(self) -> None:
    """Queues a flush to disk."""
    self._submit(self._call, 'flush')

  def close(self) -> None:
    """Queues the end."""
    self._submit(self._close)

  def _close(self) -> None:
    try:
      self._call('close')
    finally:
      atexit.unregister(self._pipe.close)
      self._pipe.close()
      self._process.join()

  def _call(self, name: str, *args: Any) -> None:
    try:
      self._pipe.send((name, args))
      error = self._pipe.recv()
    except (EOFError, OSError) as cause:
      raise RuntimeError('the process that writes event files died') from cause
    if error:
      raise RuntimeError(f'event files cannot be written: {error}')
