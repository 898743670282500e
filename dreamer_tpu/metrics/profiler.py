"""Profiler traces of selected updates."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from etils import epath

from dreamer_tpu import paths


class Profiler:
  """Traces a range of updates on process 0, for TensorBoard or Perfetto.

  Traces are written to LOGDIR/plugins/profile/. CLU's profiler is not used
  because it imports TensorFlow into the training process.

  Use as a context manager, so that a run that ends within the range writes its
  trace, too.

  Args:
    updates: Range 'FIRST:END' of updates, counted from 0, END excluded; '' for
      none.
    logdir: Directory of the run.
    log_status: Prints a status line.
  """

  def __init__(
    self,
    updates: str,
    logdir: epath.PathLike,
    log_status: Callable[[str], None],
  ) -> None:
    traced = updates if jax.process_index() == 0 else ''
    self._first, self._end = map(int, (traced or '0:0').split(':'))
    self._logdir = os.fspath(logdir)
    self._log_status = log_status
    self._tracing = False

  def __call__(self, update: int) -> contextlib.AbstractContextManager[Any]:
    """Returns the context of an update.

    Args:
      update: Number of updates before it.
    """
    inside = self._first <= update < self._end
    if inside and not self._tracing:
      self._start()
    elif self._tracing and not inside:
      self.close()
    if inside:
      return jax.profiler.StepTraceAnnotation('update', step_num=update)
    return contextlib.nullcontext()

  def close(self) -> None:
    """Ends the current trace, if any."""
    if not self._tracing:
      return
    self._tracing = False
    try:
      jax.profiler.stop_trace()
    except (OSError, RuntimeError) as error:
      reason = paths.describe(error, self._logdir)
      logging.warning('The trace cannot be written (%s).', reason)
      return
    self._log_status(f'Wrote the trace to {self._logdir}/plugins/profile.')

  def __enter__(self) -> 'Profiler':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _start(self) -> None:
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # It would slow the loop down.
    jax.profiler.start_trace(self._logdir, profiler_options=options)
    self._tracing = True
