"""TensorBoard event files, written by CLU in a separate process.

CLU imports TensorFlow, which stays out of the training process: its LLVM
conflicts with that of Mesa, which renders environments, its import takes
seconds, and it reserves the memory of every visible GPU.
"""

import errno
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.config import flatten
from dreamer_tpu.metrics import video
from dreamer_tpu.metrics.process import Process
from dreamer_tpu.paths import is_local

_FILES = 'events.out.tfevents.*'


class TensorBoard:
  """Target of metrics: event files, written by another process.

  After a failure, the next event file begins with the metrics that the
  process did not confirm.

  Args:
    logdir: Directory of the event files.
    last_step: Events of earlier files after this step are dropped; None keeps
      all.
  """

  def __init__(self, logdir: epath.PathLike, last_step: int | None) -> None:
    self._logdir = os.fspath(logdir)
    self._process = Process(_EventFiles, self._logdir, last_step)

  def write(self, item: tuple[str, Any]) -> None:
    """Writes ('metrics', (step, metrics)) or ('hparams', configuration).

    Raises:
      OSError: The disk is full.
      RuntimeError: Any other failure.
    """
    kind, values = item
    try:
      if kind == 'hparams':
        self._process.call('write_hparams', _hparams(values))
      else:
        self._process.call('write', *values)
        self._process.args = (self._logdir, values[0])
    except RuntimeError as error:
      if 'ResourceExhausted' in str(error):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
      raise

  def close(self) -> None:
    """Completes the files."""
    self._process.close()


def _hparams(config: Mapping[str, Any]) -> dict[str, Any]:
  return {
    key: value if isinstance(value, (bool, int, float, str)) else str(value)
    for key, value in flatten(config).items()
  }


class _EventFiles:
  """Event files of a logdir, in the writer process."""

  def __init__(self, logdir: str, last_step: int | None) -> None:
    from clu import metric_writers

    if last_step is not None:
      _trim(epath.Path(logdir), last_step)
    self._logdir = epath.Path(logdir)
    self._local = is_local(logdir)
    self._writer = metric_writers.SummaryWriter(logdir)
    self.close = self._writer.close

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    self._writer.write_hparams(hparams)
    self._flush()

  def write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
    ranks: dict[int, dict[str, np.ndarray]] = {0: {}, 1: {}, 3: {}, 4: {}}
    for name, value in metrics.items():
      if value.size:
        ranks[value.ndim][name] = value
    self._writer.write_scalars(step, {k: float(v) for k, v in ranks[0].items()})
    self._writer.write_histograms(step, ranks[1])
    self._writer.write_images(step, ranks[3])
    self._write_videos(step, ranks[4])
    self._flush()

  def _flush(self) -> None:
    """Flushes. TensorFlow does not notice that its file was removed."""
    self._writer.flush()
    if self._local and not any(self._logdir.glob(_FILES)):
      raise FileNotFoundError('the files were removed')

  def _write_videos(self, step: int, videos: Mapping[str, np.ndarray]) -> None:
    """Writes image summaries with animated GIFs in place of PNGs."""
    from tensorboard.plugins.image import metadata

    values, descriptions = {}, {}
    for name, frames in videos.items():
      shape = video.to_rgb(frames).shape
      height, width = (str(size).encode() for size in shape[1:3])
      gif = video.encode_gif(frames)
      values[name] = np.array([width, height, gif], object)
      descriptions[name] = metadata.create_summary_metadata(name, '')
    self._writer.write_summaries(step, values, descriptions)


def _trim(logdir: epath.Path, last_step: int) -> None:
  """Drops events after the step at which the run resumes.

  Readers disagree about restart markers. Each file was trimmed when the next
  one was started, so only the newest with an event up to the step, and those
  after it, can hold later events.
  """
  for path in sorted(logdir.glob(_FILES), reverse=True):
    if _trim_file(path, last_step):
      break


def _trim_file(path: epath.Path, last_step: int) -> bool:
  """Trims a file. Returns whether it has an event in steps 1 to last_step."""
  from tensorboard.backend.event_processing import event_file_loader
  from tensorboard.compat.proto import event_pb2
  from tensorboard.summary.writer import record_writer

  # Readers must not take it for an event file.
  partial = path.with_name('trimmed.partial')
  late = early = False
  try:
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
  finally:
    partial.unlink(missing_ok=True)
  return early
