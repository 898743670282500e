"""TensorBoard event files through CLU, in a process of their own.

CLU imports TensorFlow. It stays out of the process that trains: it brings an
LLVM that collides with the one of Mesa, with which environments render, takes
seconds to import, and would reserve the memory of every GPU that it sees.
"""

import contextlib
import os
import signal
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.metrics import video


def serve(pipe: Connection, logdir: str, last_step: int | None) -> None:
  """The main function of the process.

  Answers every (method of `EventFiles`, arguments) with '', or with what went
  wrong, until the other side closes the pipe or dies. Ctrl-C and SIGTERM reach
  the whole process group, but the run still has to save: they are ignored.

  Args:
    pipe: To the process that trains.
    logdir: Directory of the event files.
    last_step: What earlier files hold after this step is dropped; None keeps
      it all.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  # It only writes files here, and would announce how it computes.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  os.environ['CUDA_VISIBLE_DEVICES'] = ''
  os.environ['JAX_PLATFORMS'] = 'cpu'
  files = None
  with contextlib.suppress(EOFError, ConnectionError):
    while True:
      name, args = pipe.recv()
      try:
        files = files or EventFiles(epath.Path(logdir), last_step)
        getattr(files, name)(*args)
      except Exception as error:  # the other side raises it
        pipe.send(f'{type(error).__name__}: {error}')
      else:
        pipe.send('')


class EventFiles:
  """The event files of a logdir.

  Args:
    logdir: Their directory.
    last_step: What they hold after this step is dropped; None keeps it all.
  """

  def __init__(self, logdir: epath.Path, last_step: int | None):
    from clu import metric_writers

    if last_step is not None:
      _trim(logdir, last_step)
    self._writer = metric_writers.SummaryWriter(os.fspath(logdir))

  def write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Writes scalars, histograms [N], images [H, W, C], videos [T, H, W, C]."""
    ranks: dict[int, dict[str, np.ndarray]] = {0: {}, 1: {}, 3: {}, 4: {}}
    for name, value in metrics.items():
      if value.size:
        ranks[value.ndim][name] = value
    if ranks[0]:
      scalars = {name: float(value) for name, value in ranks[0].items()}
      self._writer.write_scalars(step, scalars)
    if ranks[1]:
      self._writer.write_histograms(step, ranks[1])
    if ranks[3]:
      self._writer.write_images(step, ranks[3])
    if ranks[4]:
      self._write_videos(step, ranks[4])

  def hparams(self, values: Mapping[str, Any]) -> None:
    """Writes the hyper-parameters of the run."""
    self._writer.write_hparams(values)

  def flush(self) -> None:
    """Flushes to disk."""
    self._writer.flush()

  def close(self) -> None:
    """Ends the newest file."""
    self._writer.close()

  def _write_videos(self, step: int, videos: Mapping[str, np.ndarray]) -> None:
    """An animated GIF takes the place of the PNG in an image summary."""
    from tensorboard.plugins.image import metadata

    values, descriptions = {}, {}
    for name, frames in videos.items():
      height, width = (str(size).encode() for size in frames.shape[1:3])
      gif = video.encode_gif(frames)
      values[name] = np.array([width, height, gif], object)
      descriptions[name] = metadata.create_summary_metadata(name, '')
    self._writer.write_summaries(step, values, descriptions)


def _trim(logdir: epath.Path, last_step: int) -> None:
  """Drops what a crashed process wrote after the step it is resumed from.

  Markers of a restart exist, but readers disagree about them. Each file was
  trimmed when the next one was started, so the newest that holds something
  from before the step is the last one to look at.
  """
  for path in sorted(logdir.glob('events.out.tfevents.*'), reverse=True):
    if _trim_file(path, last_step):
      break


def _trim_file(path: epath.Path, last_step: int) -> bool:
  """Rewrites one file. Returns: whether it held an earlier metric."""
  from tensorboard.backend.event_processing import event_file_loader
  from tensorboard.compat.proto import event_pb2
  from tensorboard.summary.writer import record_writer

  # Its name must not look like an event file's to readers.
  partial = path.with_name('trimmed.partial')
  late = early = False
  with partial.open('wb') as file:
    writer = record_writer.RecordWriter(file)
    for record in event_file_loader.RawEventFileLoader(str(path)).Load():
      step = event_pb2.Event.FromString(record).step
      late |= step > last_step
      early |= 0 < step <= last_step
      if step <= last_step:
        writer.write(record)
  if late:
    partial.replace(path)
  else:
    partial.unlink()
  return early
