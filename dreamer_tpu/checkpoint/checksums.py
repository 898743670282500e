"""Sums over the files of a step, by which damage is told from data.

Orbax guards its indices, but not the arrays themselves: a flipped bit in them
would be loaded without a word. The sums are written right after the commit, in
the background; a step whose process was killed in between has none and is
taken as it is. Object stores keep sums of their own, and get none from here.
"""

import json
import zlib
from typing import Any

import jax
from etils import epath

FILE = 'checksums.json'
_PART = 1 << 22


def write(folder: epath.Path) -> None:
  """Notes size and CRC-32 of every file of a step that was just committed.

  Only on process 0, and only in local file systems.
  """
  if jax.process_index() or '://' in str(folder):
    return
  sums = {str(path.relative_to(folder)): _sum(path) for path in _files(folder)}
  temporary = folder / f'tmp-{FILE}'
  temporary.write_text(json.dumps({'crc': _own(sums), 'files': sums}))
  temporary.replace(folder / FILE)


def verify(
  folder: epath.Path, *, ignore: str | None = None, share: bool = False
) -> None:
  """Compares a step with what was written.

  Args:
    folder: A step folder.
    ignore: A subfolder to leave out.
    share: Whether the processes share the reading: each compares the sizes of
      all files, and the sums of its own part of them.

  Raises:
    ValueError: A file is missing, cut short or changed. Names the file.
  """
  try:
    content = json.loads((folder / FILE).read_text())
    sums, crc = content['files'], content['crc']
  except FileNotFoundError:
    return
  except (ValueError, KeyError):
    sums, crc = {}, None
  if crc != _own(sums):
    raise ValueError(f"'{folder / FILE}' is damaged")
  index, count = (jax.process_index(), jax.process_count()) if share else (0, 1)
  for number, (name, (size, crc)) in enumerate(sorted(sums.items())):
    if ignore is not None and name.startswith(f'{ignore}/'):
      continue
    path = folder / name
    if not path.exists():
      raise ValueError(f"'{path}' is missing")
    length = path.stat().length
    if length != size:
      raise ValueError(f"'{path}' has {length:,} bytes instead of {size:,}")
    if number % count == index and _sum(path)[1] != crc:
      raise ValueError(f"'{path}' is damaged (its checksum differs)")


def _files(folder: epath.Path) -> list[epath.Path]:
  return [
    root / name
    for root, _, names in folder.walk()
    for name in names
    if name not in (FILE, f'tmp-{FILE}')
  ]


def _own(sums: dict[str, Any]) -> int:
  return zlib.crc32(json.dumps(sums).encode())


def _sum(path: epath.Path) -> tuple[int, int]:
  buffer = memoryview(bytearray(_PART))
  size = crc = 0
  with path.open('rb') as file:
    while count := file.readinto(buffer):
      crc = zlib.crc32(buffer[:count], crc)
      size += count
  return size, crc
