"""JSON lines files that survive crashes and resumes."""

import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
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
  collected in a local file and uploaded once a minute and when flushed.

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
    submit: Callable[[Callable[[], None]], Any],
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    self._path = epath.Path(path)
    self._submit = submit
    self._clock = clock
    self._lock = threading.Lock()
    self._remote = not is_local(path)
    self._uploaded = clock()
    self._changed = False
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
        return
      self._changed = True
      now = self._clock()
      due = now - self._uploaded > _UPLOAD_EVERY
      if due:
        self._uploaded = now
    if due:
      self._submit(self.flush)

  def flush(self) -> None:
    """Uploads new lines to an object store."""
    with self._lock:
      if not self._changed:
        return
      self._file.seek(0)
      content = self._file.read()
      self._changed = False
    self._path.write_bytes(content)

  def close(self) -> None:
    """Flushes and closes the file."""
    self.flush()
    self._file.close()


def read(path: epath.PathLike) -> list[dict[str, Any]]:
  """Returns the objects in a file, except incomplete lines."""
  lines = epath.Path(path).read_bytes().splitlines()
  return [value for line in lines if (value := _parse(line)) is not None]


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
  lines = []
  for line in content.splitlines():
    value = _parse(line)
    if value is None:
      continue
    if last_step is None or value.get('step', 0) <= last_step:
      lines.append(line + b'\n')
  kept = b''.join(lines)
  if kept != content:
    atomic_write(path, kept)
  return kept


def _parse(line: bytes) -> dict[str, Any] | None:
  try:
    value = json.loads(line)
  except ValueError:
    return None
  return value if isinstance(value, dict) else None


def _plain(value: Any) -> Any:
  if isinstance(value, (np.ndarray, np.generic)):
    value = value.item()
  finite = not isinstance(value, float) or math.isfinite(value)
  return value if finite else None
