"""Atomic writes, and the test for a local path."""

import contextlib
import os
from collections.abc import Iterable

from etils import epath


def is_local(path: epath.PathLike) -> bool:
  """Returns whether a path is in a file system, not in an object store."""
  return '://' not in os.fspath(path)


def atomic_write(
  path: epath.PathLike, data: bytes | str | Iterable[bytes | memoryview]
) -> None:
  """Writes a file that is either complete or absent, even after a power cut.

  Args:
    path: Final path, in an existing folder. The file is written beside it as
      `tmp-NAME` and renamed; an existing file is replaced.
    data: Content, whole or in parts.

  Raises:
    OSError: The file cannot be written. Nothing is left behind.
  """
  path = epath.Path(path)
  local = is_local(path)
  if isinstance(data, str):
    data = data.encode()
  parts = [data] if isinstance(data, bytes) else data
  temporary = path.with_name(f'tmp-{path.name}')
  try:
    with temporary.open('wb') as file:
      for part in parts:
        file.write(part if local else bytes(part))
      if local:
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise
