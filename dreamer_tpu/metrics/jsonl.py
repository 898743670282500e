"""JSON lines files that survive crashes and resumes."""

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.paths import atomic_write, is_local

# Minimum seconds between uploads to an object store.
_UPLOAD_EVERY = 60.0


class JsonLines:
  """Target of lines: a file of JSON objects.

  Each line of a local file is written at once, so that readers and crashes see
  whole lines. An object store (`gs://`) only accepts whole files: lines are
  collected and uploaded once a minute and at the end.

  Args:
    path: File to append to. Incomplete lines in it are dropped.
    last_step: Lines with a larger "step" are dropped; None keeps all.
    clock: Monotonic time in seconds.

  Raises:
    OSError: The file cannot be written.
  """

  def __init__(
    self,
    path: epath.PathLike,
    last_step: int | None,
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    self._path = epath.Path(path)
    self._clock = clock
    self._uploaded = clock()
    self._content = bytearray(trim(self._path, last_step))
    self._file: int | None = None
    self._local = is_local(path)
    if self._local:
      self._content.clear()
      self._file = self._open()

  def write(self, item: bytes) -> None:
    """Appends a line, or nothing.

    Args:
      item: Line with its end, from `line`.

    Raises:
      OSError: The line cannot be written. The next try opens the file anew.
    """
    if self._local:
      self._append(item)
      return
    self._content += item
    if self._clock() - self._uploaded > _UPLOAD_EVERY:
      try:
        self._path.write_bytes(self._content)
      except BaseException:
        del self._content[-len(item) :]
        raise
      self._uploaded = self._clock()

  def close(self) -> None:
    """Uploads the last lines, or closes the file."""
    if not self._local:
      self._path.write_bytes(self._content)
    elif self._file is not None:
      os.close(self._file)

  def _open(self) -> int:
    self._path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

  def _append(self, line: bytes) -> None:
    if self._file is None:
      self._file = self._open()
    try:
      status = os.fstat(self._file)
      if not status.st_nlink:
        raise FileNotFoundError(errno.ENOENT, 'the file was removed')
      rest = memoryview(line)
      try:
        while rest:
          rest = rest[os.write(self._file, rest) :]
      except OSError:
        os.ftruncate(self._file, status.st_size)
        raise
    except OSError:
      file, self._file = self._file, None
      os.close(file)
      raise


def line(values: Mapping[str, Any]) -> bytes:
  """Returns a line of JSON.

  Args:
    values: JSON types and NumPy scalars. NaN and infinity become null.
  """
  plain = {name: _plain(value) for name, value in values.items()}
  return json.dumps(plain, allow_nan=False).encode() + b'\n'


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
