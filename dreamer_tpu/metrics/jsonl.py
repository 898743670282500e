"""JSON lines files that survive a crash in the middle of a run."""

import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

# An object store takes whole files only: they are sent again this often.
_UPLOAD_SECONDS = 60.0


class JsonLines:
  """Appends objects to a file, one line each.

  A local file gets each line in one append of the operating system, so that
  readers and crashes see whole lines. A file on an object store (`gs://`) is
  collected locally and sent as a whole, at most once in a minute and when
  flushed.
  """

  def __init__(
    self,
    path: epath.PathLike,
    last_step: int | None = None,
    *,
    submit: Callable[[Callable[[], None]], Any] | None = None,
    remote: bool | None = None,
  ) -> None:
    """Opens the file, and trims what a crashed run left behind.

    Args:
      path: Where the file is or will be.
      last_step: Lines whose "step" is larger are dropped, as the run goes on
        from there; None keeps them all. Broken lines always go.
      submit: Runs an upload in the background; by default it is done at once.
      remote: Whether whole files are sent; by default known from the path.
    """
    self._path = epath.Path(path)
    self._submit = submit or (lambda upload: upload())
    if remote is None:
      remote = '://' in os.fspath(path)
    kept = trim(self._path, last_step)
    self._lock = threading.Lock()
    self._sent = time.monotonic()
    self._changed = False
    self._spool: Any = None
    self._fd = -1
    if remote:
      self._spool = tempfile.TemporaryFile()  # noqa: SIM115
      self._spool.write(kept)
    else:
      flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
      self._fd = os.open(self._path, flags, 0o644)

  def append(self, values: Mapping[str, Any]) -> None:
    """Appends one object; numbers that JSON lacks become null."""
    line = encode(values)
    if self._spool is None:
      _write_all(self._fd, line)
      return
    with self._lock:
      self._spool.write(line)
      self._changed = True
      now = time.monotonic()
      due = now - self._sent > _UPLOAD_SECONDS
      if due:
        self._sent = now
    if due:
      self._submit(self.flush)

  def flush(self) -> None:
    """Sends what an object store does not have yet."""
    if self._spool is None:
      return
    with self._lock:
      if not self._changed:
        return
      self._spool.seek(0)
      content = self._spool.read()
      self._changed = False
    self._path.write_bytes(content)

  def close(self) -> None:
    """Flushes and closes; nothing can be appended any more."""
    self.flush()
    if self._spool is not None:
      self._spool.close()
    elif self._fd >= 0:
      os.close(self._fd)
      self._fd = -1


def encode(values: Mapping[str, Any]) -> bytes:
  """Returns one line of valid JSON, the newline included.

  Args:
    values: Strings, None, and Python or NumPy scalars. A non-finite number
      becomes null, which readers of tables take for a missing value.
  """
  plain = {name: _plain(value) for name, value in values.items()}
  return (json.dumps(plain, allow_nan=False) + '\n').encode()


def read(path: epath.PathLike) -> list[dict[str, Any]]:
  """Returns the objects of a file, without lines that were cut off."""
  objects = []
  for line in epath.Path(path).read_bytes().splitlines():
    if (value := _parse(line)) is not None:
      objects.append(value)
  return objects


def trim(path: epath.PathLike, last_step: int | None) -> bytes:
  """Drops lines after a step, and broken ones, in one atomic step.

  Args:
    path: A file of JSON lines; nothing happens where there is none.
    last_step: The largest "step" that stays, or None for all.

  Returns:
    What the file holds now.
  """
  path = epath.Path(path)
  if not path.exists():
    return b''
  content = path.read_bytes()
  kept = b''.join(
    line + b'\n'
    for line in content.splitlines()
    if _stays(_parse(line), last_step)
  )
  if kept != content:
    partial = path.with_name(path.name + '.partial')
    partial.write_bytes(kept)
    partial.replace(path)
  return kept


def _stays(value: dict[str, Any] | None, last_step: int | None) -> bool:
  if value is None:
    return False
  return last_step is None or value.get('step', 0) <= last_step


def _parse(line: bytes) -> dict[str, Any] | None:
  try:
    value = json.loads(line)
  except ValueError:
    return None
  return value if isinstance(value, dict) else None


def _plain(value: Any) -> Any:
  if value is None or isinstance(value, (str, bool, int)):
    return value
  if not isinstance(value, float):
    value = value.item() if value.dtype.kind in 'biu' else _shortest(value)
  return (
    None if isinstance(value, float) and not math.isfinite(value) else value
  )


def _shortest(value: Any) -> float:
  """The shortest decimal that rounds to the same float32 (or narrower)."""
  return float(str(value[()] if hasattr(value, 'shape') else value))


def _write_all(fd: int, line: bytes) -> None:
  while line:
    line = line[os.write(fd, line) :]
