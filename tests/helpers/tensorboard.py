"""TensorBoard's own reader, without TensorFlow.

A process that renders with Mesa must not import TensorFlow: their versions of
LLVM collide.
"""

import sys
import types


def read(logdir):
  """Returns an EventAccumulator that has loaded all of a log directory."""
  # The mark by which TensorBoard knows to do without.
  name = 'tensorboard.compat.notf'
  sys.modules.setdefault(name, types.ModuleType(name))
  from tensorboard.backend.event_processing import event_accumulator

  reader = event_accumulator.EventAccumulator(
    str(logdir), {event_accumulator.TENSORS: 0}
  )
  return reader.Reload()
