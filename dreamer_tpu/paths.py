"""Atomic writes, the test for a local path, and errors of disks."""

import contextlib
import os
import shutil
from collections.abc import Iterable

from etils import epath

_FULL = 'No space left on device', 'Disk quota exceeded', 'File too large'


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


def describe(error: BaseException, folder: epath.PathLike) -> str:
  """Returns an error in a line of at most 200 characters and the free space.

  Args:
    error: Error of a write.
    folder: Folder whose free space is given if the disk was full.
  """
  text = error.strerror if isinstance(error, OSError) else str(error)
  text = ' '.join((text or str(error)).split()) or type(error).__name__
  if full := full_disk(text):
    return f'{full}; {free_space(full, folder)}'.rstrip('; ')
  return text if len(text) <= 200 else f'{text[:80]} ... {text[-115:]}'


def full_disk(message: str) -> str:
  """Returns the reason in an error's message if it is a full disk, else ''."""
  return next((text for text in _FULL if text in message), '')


def free_space(message: str, folder: epath.PathLike) -> str:
  """Returns 'N GB free on FOLDER' if a message is that of a full disk, else ''.

  Args:
    message: Message of an error.
    folder: Local folder on that disk; the free space of a missing one is that
      of its nearest parent.
  """
  if not full_disk(message) or not is_local(folder):
    return ''
  path = epath.Path(folder)
  while not path.exists() and path != path.parent:
    path = path.parent
  return f'{size(shutil.disk_usage(path).free)} free on {path}'


def size(count: float) -> str:
  """Returns a number of bytes, such as '12.3 GB'."""
  for unit, name in ((1e9, 'GB'), (1e6, 'MB')):
    if count >= unit:
      return f'{count / unit:.1f} {name}'
  return f'{count / 1e3:.0f} kB'
