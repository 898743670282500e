"""A trace of some updates, for TensorBoard's profiler or Perfetto."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import jax
from etils import epath


class Profiler:
  """Traces the updates of a range, on process 0.

  CLU's own action does the same with an import of TensorFlow, which stays out
  of the process that trains. The trace lies in LOGDIR/plugins/profile/.

  Use it as a context manager, or call `close`, so that a run that ends within
  the range leaves its trace, too.

  Args:
    updates: 'FIRST:END' of the updates, counted from 0 without END; '' for
      none.
    logdir: Of the run.
    log_status: Shows a line on the terminal.
  """

  def __init__(
    self,
    updates: str,
    logdir: epath.PathLike,
    log_status: Callable[[str], None],
  ):
    traced = updates if jax.process_index() == 0 else ''
    self._first, self._end = map(int, (traced or '0:0').split(':'))
    self._logdir = os.fspath(logdir)
    self._log_status = log_status
    self._tracing = False

  def __call__(self, update: int) -> contextlib.AbstractContextManager[Any]:
    """The context in which an update is made.

    Args:
      update: Updates before it.
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
    """Ends the trace, if there is one."""
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()
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
