"""TensorBoard's reader and writer, without TensorFlow.

A process that renders with Mesa must not import TensorFlow: their LLVM versions
conflict.
"""

import sys
import types

# TensorBoard does without TensorFlow if it can import this module.
_NO_TENSORFLOW = 'tensorboard.compat.notf'
sys.modules.setdefault(_NO_TENSORFLOW, types.ModuleType(_NO_TENSORFLOW))


def read(logdir):
  """Returns an EventAccumulator with all events of a log directory."""
  from tensorboard.backend.event_processing import event_accumulator

  reader = event_accumulator.EventAccumulator(
    str(logdir), {event_accumulator.TENSORS: 0}
  )
  return reader.Reload()


def write_empty(logdir):
  """Writes an event file as a process that ends before its first metric."""
  from tensorboard.summary.writer import event_file_writer

  event_file_writer.EventFileWriter(str(logdir)).close()


def age(logdir):
  """Makes event files a minute older.

  Readers order files by the time in their names, which has whole seconds.
  """
  for path in logdir.glob('events.out.tfevents.*'):
    events, out, name, seconds, rest = path.name.split('.', 4)
    seconds = str(int(seconds) - 60)
    path.rename(logdir / '.'.join((events, out, name, seconds, rest)))
