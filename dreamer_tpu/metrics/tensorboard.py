"""TensorBoard event files, written by CLU in a separate process.

CLU imports TensorFlow, which stays out of the training process: its LLVM
conflicts with that of Mesa, which renders environments, its import takes
seconds, and it reserves the memory of every visible GPU.
"""

import atexit
import contextlib
import importlib.util
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.config import flatten
from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics import video


class TensorBoard:
  """Writes metrics to event files, in the background.

  Methods queue calls of `_EventFiles` in the writer process. Errors there are
  raised on the background thread.

  Args:
    logdir: Directory of the event files.
    submit: Runs a function with its arguments on the background thread.
    last_step: Events of earlier files after this step are dropped; None keeps
      all.

  Raises:
    UserError: A package is missing.
  """

  def __init__(
    self,
    logdir: epath.PathLike,
    submit: Callable[..., None],
    last_step: int | None,
  ) -> None:
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
      target=_writer_main,
      args=(theirs, os.fspath(logdir), last_step),
      name='tensorboard',
      daemon=True,
    )
    self._process.start()
    theirs.close()
    # Multiprocessing would send SIGTERM at exit, which the writer ignores.
    atexit.register(self._pipe.close)

  def write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Queues metrics, see `Writers.write`. Arrays must not change later."""
    self._submit(self._call, 'write', step, metrics)

  def write_hparams(self, config: Mapping[str, Any]) -> None:
    """Queues a configuration as the hyperparameters of the run."""
    values = {
      key: value if isinstance(value, (bool, int, float, str)) else str(value)
      for key, value in flatten(config).items()
    }
    self._submit(self._call, 'write_hparams', values)

  def close(self) -> None:
    """Queues the end of the writer process."""
    self._submit(self._close)

  def _close(self) -> None:
    try:
      self._call('close')
    finally:
      atexit.unregister(self._pipe.close)
      self._pipe.close()
      self._process.join()

  def _call(self, method: str, *args: Any) -> None:
    try:
      self._pipe.send((method, args))
      error = self._pipe.recv()
    except (EOFError, OSError) as cause:
      raise RuntimeError('the process that writes event files died') from cause
    if error:
      raise RuntimeError(f'event files cannot be written: {error}')


def _writer_main(pipe: Connection, logdir: str, last_step: int | None) -> None:
  """Runs the writer process until the pipe is closed.

  Replies to each (method of `_EventFiles`, arguments) with an error message,
  empty on success. Ignores SIGINT and SIGTERM, which reach the whole process
  group, because the run still has to save.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  # TensorFlow needs no accelerator, and should not log its CPU features.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  os.environ['CUDA_VISIBLE_DEVICES'] = ''
  os.environ['JAX_PLATFORMS'] = 'cpu'
  files = None
  with contextlib.suppress(EOFError, ConnectionError):
    while True:
      method, args = pipe.recv()
      try:
        files = files or _EventFiles(epath.Path(logdir), last_step)
        getattr(files, method)(*args)
      except Exception as error:  # Raised in the training process.
        pipe.send(f'{type(error).__name__}: {error}')
      else:
        pipe.send('')


class _EventFiles:
  """Event files of a logdir, in the writer process."""

  def __init__(self, logdir: epath.Path, last_step: int | None) -> None:
    from clu import metric_writers

    if last_step is not None:
      _trim(logdir, last_step)
    self._writer = metric_writers.SummaryWriter(os.fspath(logdir))
    self.write_hparams = self._writer.write_hparams
    self.close = self._writer.close

  def write(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
    ranks: dict[int, dict[str, np.ndarray]] = {0: {}, 1: {}, 3: {}, 4: {}}
    for name, value in metrics.items():
      if value.size:
        ranks[value.ndim][name] = value
    self._writer.write_scalars(step, {k: float(v) for k, v in ranks[0].items()})
    self._writer.write_histograms(step, ranks[1])
    self._writer.write_images(step, ranks[3])
    self._write_videos(step, ranks[4])
    self._writer.flush()

  def _write_videos(self, step: int, videos: Mapping[str, np.ndarray]) -> None:
    """Writes image summaries with animated GIFs in place of PNGs."""
    from tensorboard.plugins.image import metadata

    values, descriptions = {}, {}
    for name, frames in videos.items():
      height, width = (str(size).encode() for size in frames.shape[1:3])
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
  for path in sorted(logdir.glob('events.out.tfevents.*'), reverse=True):
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
