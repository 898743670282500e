"""CRC-32 checksums of a checkpoint's files.

Orbax checks its indices but not the arrays, in which a flipped bit would go
unnoticed. The sums are written in the background, right after the commit. A
step whose process was killed in between has no sums and is not verified.
Neither are steps in object stores, which keep checksums of their own.
"""

import json
import zlib
from typing import Any

import jax
from etils import epath

from dreamer_tpu import paths

FILE = 'checksums.json'
_BUFFER = 1 << 22


def write(folder: epath.Path) -> None:
  """Writes the size and CRC-32 of every file of a committed local step."""
  if jax.process_index() or not paths.is_local(folder):
    return
  sums = {
    str((root / name).relative_to(folder)): _sum(root / name)
    for root, _, names in folder.walk()
    for name in names
  }
  content = json.dumps({'crc': _own(sums), 'files': sums})
  paths.atomic_write(folder / FILE, content)


def verify(folder: epath.Path, *, ignore: str | None = None) -> None:
  """Compares the files of a step with their checksums.

  The processes share the work: each compares the sizes of all files, and the
  checksums of its part of them.

  Args:
    folder: Step folder.
    ignore: Subfolder to leave out.

  Raises:
    ValueError: A file is missing, truncated or changed. Names the file.
  """
  try:
    content = json.loads((folder / FILE).read_text())
    sums, crc = content['files'], content['crc']
  except FileNotFoundError:
    return
  except (ValueError, KeyError):
    sums, crc = {}, None
  if crc != _own(sums):
    raise ValueError(f"'{folder / FILE}' is corrupt")
  for number, (name, (size, crc)) in enumerate(sorted(sums.items())):
    if ignore is not None and name.startswith(f'{ignore}/'):
      continue
    path = folder / name
    if not path.exists():
      raise ValueError(f"'{path}' is missing")
    length = path.stat().length
    if length != size:
      raise ValueError(f"'{path}' has {length:,} bytes instead of {size:,}")
    mine = number % jax.process_count() == jax.process_index()
    if mine and _sum(path)[1] != crc:
      raise ValueError(f"'{path}' is corrupt (its checksum differs)")


def _own(sums: dict[str, Any]) -> int:
  """Returns the checksum of the checksums themselves."""
  return zlib.crc32(json.dumps(sums).encode())


def _sum(path: epath.Path) -> tuple[int, int]:
  """Returns size and CRC-32 of a file."""
  buffer = memoryview(bytearray(_BUFFER))
  size = crc = 0
  with path.open('rb') as file:
    while count := file.readinto(buffer):
      crc = zlib.crc32(buffer[:count], crc)
      size += count
  return size, crc
