"""The newest step that is whole."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from dreamer_tpu.checkpoint import layout
from dreamer_tpu.checkpoint.manager import Checkpointer
from dreamer_tpu.errors import UserError
from dreamer_tpu.replay import ReplayCorrupt

T = TypeVar('T')
_BYTES = 400


def restore_newest(
  checkpointer: Checkpointer, attempt: Callable[[int], T]
) -> T:
  """Restores the newest step that no process finds damaged.

  Damaged steps are put aside, as `STEP.damaged`, once an older one has been
  restored; otherwise nothing is touched. Only damage leads to an older step:
  one that does not fit the configuration is an error.

  Args:
    checkpointer: Of a folder that holds steps.
    attempt: Restores a step; called on all processes for the same ones.

  Returns:
    What `attempt` returns.

  Raises:
    UserError: The step does not fit, or none can be read.
  """
  steps = [x for x in checkpointer.traces() if checkpointer.has_replay(x)]
  faults: dict[int, str] = {}
  for step in reversed(steps):
    fault = ''
    try:
      result = attempt(step)
    except (layout.Damaged, ReplayCorrupt) as error:
      fault = str(error)
    fault = _agree(fault)
    if not fault:
      for damaged in faults:
        checkpointer.set_aside(damaged)
      return result
    logging.warning('%s', fault)
    if step != steps[0]:
      logging.warning('Falling back from step %d to the step before it.', step)
    faults[step] = fault
  raise _no_step(checkpointer, faults)


def _agree(fault: str) -> str:
  """The first fault that some process has found."""
  if jax.process_count() == 1:
    return fault
  text = fault.encode()[:_BYTES].ljust(_BYTES, b'\0')
  rows = multihost_utils.process_allgather(np.frombuffer(text, np.uint8))
  texts = [row.tobytes().rstrip(b'\0') for row in np.asarray(rows)]
  return next((x.decode(errors='ignore') for x in texts if x), '')


def _no_step(checkpointer: Checkpointer, faults: dict[int, str]) -> UserError:
  folder = checkpointer.directory
  agents = [x for x in checkpointer.steps() if x not in faults]
  if agents:
    return UserError(
      f"No step in '{folder}' can be gone on from: {list(faults) or 'those'} "
      f'are damaged, {agents} hold an agent but no replay. Start a new logdir '
      f"with run.from_checkpoint='{folder / str(agents[-1])}', or bring back "
      'a copy.'
    )
  return UserError(
    f"No step in '{folder}' can be read: {list(faults)} are damaged. Bring "
    'back a copy, or start a new logdir.'
  )
