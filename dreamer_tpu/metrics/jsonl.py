"""JSON lines files that survive crashes and resumes."""

import contextlib
import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.paths import atomic_write, is_local

# Minimum seconds between uploads to an object store.
_UPLOAD_EVERY = 60.0


class JsonLines:
  """Appends objects to a file, one per line.

  Each line of a local file is written at once, so that readers and crashes see
  whole lines. An object store (`gs://`) only accepts whole files: lines are
  collected in a local file and uploaded once a minute and when closed.

  Args:
    path: File to append to. Incomplete lines in it are dropped.
    last_step: Lines with a larger "step" are dropped; None keeps all.
    submit: Runs an upload in the background.
    clock: Monotonic time in seconds.
  """

  def __init__(
    self,
    path: epath.PathLike,
    last_step: int | None,
    submit: Callable[..., None],
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    self._path = epath.Path(path)
    self._submit = submit
    self._clock = clock
    self._lock = threading.RLock()
    self._remote = not is_local(path)
    self._uploaded = clock()
    kept = trim(self._path, last_step)
    if self._remote:
      self._file = tempfile.TemporaryFile()  # noqa: SIM115
      self._file.write(kept)
    else:
      self._file = self._path.open('ab')

  def append(self, values: Mapping[str, Any]) -> None:
    """Appends an object.

    Args:
      values: JSON types and NumPy scalars. NaN and infinity become null.
    """
    plain = {name: _plain(value) for name, value in values.items()}
    line = json.dumps(plain, allow_nan=False).encode() + b'\n'
    with self._lock:
      self._file.write(line)
      if not self._remote:
        self._file.flush()
      elif self._clock() - self._uploaded > _UPLOAD_EVERY:
        self._uploaded = self._clock()
        self._submit(self._upload)

  def close(self) -> None:
    """Uploads the last lines, and closes the file."""
    if self._remote:
      self._upload()
    self._file.close()

  def _upload(self) -> None:
    with self._lock:
      self._file.seek(0)
      content = self._file.read()
    self._path.write_bytes(content)


def read(path: epath.PathLike) -> list[dict[str, Any]]:
  """Returns the objects in a file, except incomplete lines."""
  return [value for _, value in _parse(epath.Path(path).read_bytes())]


def trim(path: epath.Path, last_step: int | None) -> bytes:
  """Drops incomplete lines, and lines after a step, atomically.

  Args:
    path: File of JSON lines; it need not exist.
    last_step: Largest "step" to keep; None keeps all.

  Returns:
    The new content of the file.
  """
  if not path.exists():
    return b''
  content = path.read_bytes()
  kept = b''.join(
    line + b'\n'
    for line, value in _parse(content)
    if last_step is None or value.get('step', 0) <= last_step
  )
  if kept != content:
    atomic_write(path, kept)
  return kept


def _parse(content: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
  """Yields the complete lines and their objects."""
  for line in content.splitlines():
    with contextlib.suppress(ValueError):
      value = json.loads(line)
      if isinstance(value, dict):
        yield line, value


def _plain(value: Any) -> Any:
  if isinstance(value, (np.ndarray, np.generic)):
    value = value.item()
  finite = not isinstance(value, float) or math.isfinite(value)
  return value if finite else None
