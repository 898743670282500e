"""TensorBoard event files through CLU, on a thread of their own.

CLU imports TensorFlow, which takes seconds: nothing of it happens before the
first task runs on the thread.
"""

import concurrent.futures
import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics import video


class TensorBoard:
  """Writes metrics to event files in a directory, in the background."""

  def __init__(
    self,
    logdir: epath.PathLike,
    submit: Callable[..., concurrent.futures.Future[Any]],
    last_step: int | None = None,
  ) -> None:
    """Starts the import of TensorFlow.

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
    self._logdir = epath.Path(logdir)
    self._submit = submit
    self._writer: Any = None
    submit(self._open, last_step)

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Queues scalars, histograms [N], images [H, W, C], videos [T, H, W, C].

    Args:
      step: Agent steps.
      metrics: Host values by name; images and videos are uint8. They must not
        change afterwards.
    """
    self._submit(self._write, step, metrics)

  def hparams(self, values: Mapping[str, Any]) -> None:
    """Queues the hyper-parameters of the run, a flat dictionary."""
    self._submit(self._write_hparams, values)

  def flush(self) -> None:
    """Queues a flush to disk."""
    self._submit(self._flush)

  def close(self) -> None:
    """Queues the end."""
    self._submit(self._close)

  def _open(self, last_step: int | None) -> None:
    # It only writes files here, and would announce how it computes.
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    import tensorflow as tf
    from clu import metric_writers

    # TensorFlow would reserve the memory of every GPU that it sees.
    tf.config.set_visible_devices([], 'GPU')
    if last_step is not None:
      _trim(self._logdir, last_step)
    self._writer = metric_writers.SummaryWriter(os.fspath(self._logdir))

  def _write(self, step: int, metrics: Mapping[str, Any]) -> None:
    ranks: dict[int, dict[str, np.ndarray]] = {0: {}, 1: {}, 3: {}, 4: {}}
    for name, value in metrics.items():
      value = np.asarray(value)
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

  def _write_hparams(self, values: Mapping[str, Any]) -> None:
    self._writer.write_hparams(values)

  def _flush(self) -> None:
    self._writer.flush()

  def _close(self) -> None:
    self._writer.close()


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
