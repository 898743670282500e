"""Immutable files of replay rows.

A file is a series of .npy arrays, readable with successive `np.load(file)`
without pickle. The first is `runs`, int64 [r, 3], with (serial, start, stop) of
each run of rows. Then comes one array [rows, ...] per key, in sorted order.
"""

import contextlib
import io
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from etils import epath

from dreamer_tpu.errors import UserError
from dreamer_tpu.paths import atomic_write, is_local

_NAME = re.compile(r'(tmp-)?((?:steps|latents|priorities)-(\d+)-\d+\.npys)')

_HEADER = re.compile(
  rb"\{'descr': '([^']+)', 'fortran_order': False, 'shape': \(([\d, ]*)\)"
)

_ADVICE = 'restore an earlier checkpoint'
_BLOCK = 2**24  # Bytes that are verified at a time.


class ReplayCorrupt(UserError):
  """A saved replay cannot be restored."""


class Stored(NamedTuple):
  """An array in a file.

  Attributes:
    start: Position of its first byte.
    dtype: Dtype.
    shape: Shape, with the rows first.
  """

  start: int
  dtype: np.dtype
  shape: tuple[int, ...]

  @property
  def stop(self) -> int:
    """Position after its last byte."""
    count = int(np.prod(self.shape, dtype=np.int64))
    return self.start + count * self.dtype.itemsize


def shard_folder(shard: int) -> str:
  """Returns the folder of a shard inside the replay directory."""
  return f'{shard:04d}'


def file_name(shard: int, kind: str, generation: int, index: int) -> str:
  """Returns the name of a file, relative to the replay directory."""
  return f'{shard_folder(shard)}/{kind}-{generation:04d}-{index:08d}.npys'


def list_files(
  directory: epath.PathLike, shard: int
) -> list[tuple[str, int, bool]]:
  """Returns (name, generation, whether unfinished) of each file of a shard."""
  folder = shard_folder(shard)
  path = epath.Path(directory) / folder
  if not path.exists():
    return []
  matches = [_NAME.fullmatch(entry.name) for entry in path.iterdir()]
  return [
    (f'{folder}/{match[2]}', int(match[3]), bool(match[1]))
    for match in matches
    if match
  ]


def write_file(
  path: epath.Path, arrays: Iterable[np.ndarray]
) -> tuple[int, int]:
  """Writes a file atomically.

  Args:
    path: Final path, in an existing folder.
    arrays: Arrays of native dtypes.

  Returns:
    Size in bytes and CRC-32.

  Raises:
    OSError: The file cannot be written (disk full, read-only folder).
  """
  size = crc = 0

  def parts() -> Iterator[bytes | memoryview]:
    nonlocal size, crc
    for array in arrays:
      for part in (_header(array), _view(array)):
        crc = zlib.crc32(part, crc)
        size += len(part)
        yield part

  atomic_write(path, parts())
  return size, crc


def sync_folder(path: epath.Path) -> None:
  """Makes the file names in a local folder survive a power cut."""
  if not is_local(path):
    return
  handle = os.open(os.fspath(path), os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def read_file(
  directory: epath.PathLike, record: Mapping[str, Any]
) -> list[np.ndarray]:
  """Reads the arrays of a file and verifies its size and checksum.

  Args:
    directory: The replay directory.
    record: The file's entry in a manifest: name, bytes, crc.

  Returns:
    The arrays in their order in the file, read-only.

  Raises:
    ReplayCorrupt: The file is missing or corrupt.
  """
  path = epath.Path(directory) / record['name']
  with _explained(path):
    data = _read(path)
    _verify(path, record, len(data), zlib.crc32(data.data))
    return [
      data[x.start : x.stop].view(x.dtype).reshape(x.shape)
      for x in _locate(len(data), lambda i, j: data[i:j].tobytes())
    ]


def locate(
  directory: epath.PathLike, record: Mapping[str, Any]
) -> tuple[np.ndarray, list[Stored]]:
  """Verifies a file as `read_file` does, but returns only its runs.

  Returns:
    The runs, and the places of the other arrays, for `read_rows`.

  Raises:
    ReplayCorrupt: The file is missing or corrupt.
  """
  path = epath.Path(directory) / record['name']
  with _explained(path), path.open('rb') as file:
    size = crc = 0
    while block := file.read(_BLOCK):
      size += len(block)
      crc = zlib.crc32(block, crc)
    _verify(path, record, size, crc)
    runs, *others = _locate(size, lambda i, j: _read_at(file, i, j))
    return read_rows(file, runs, 0, runs.shape[0]), others


def read_rows(
  file: BinaryIO, array: Stored, start: int, stop: int
) -> np.ndarray:
  """Returns rows start..stop of an array in an open file."""
  size = (array.stop - array.start) // max(1, array.shape[0])
  first = array.start
  data = _read_at(file, first + start * size, first + stop * size)
  return np.frombuffer(data, array.dtype).reshape(-1, *array.shape[1:])


def prune(
  directory: epath.PathLike,
  manifests: Iterable[Mapping[str, Any]],
  first: int = 0,
) -> list[str]:
  """Deletes files that no manifest names.

  Only for shards that no running replay writes to; during a run call
  `Replay.prune`. Ignores files of other programs.

  Args:
    directory: The replay directory.
    manifests: Manifests of all shards that must stay restorable.
    first: Number of the first shard to prune.

  Returns:
    Names of the deleted files, relative to the directory.
  """
  root = epath.Path(directory)
  names = [entry.name for entry in root.iterdir()] if root.exists() else []
  shards = [int(name) for name in names if re.fullmatch(r'\d{4,}', name)]
  found = [
    entry
    for shard in shards
    if shard >= first
    for entry in list_files(directory, shard)
  ]
  return delete_except(directory, found, named(manifests))


def named(manifests: Iterable[Mapping[str, Any]]) -> set[str]:
  """Returns the names of all files in manifests."""
  return {file['name'] for manifest in manifests for file in manifest['files']}


def delete_except(
  directory: epath.PathLike,
  found: Iterable[tuple[str, int, bool]],
  keep: set[str],
) -> list[str]:
  """Deletes listed files that are not in `keep`, and returns their names."""
  deleted = []
  for name, _, unfinished in found:
    if name in keep:
      continue
    path = epath.Path(directory) / name
    if unfinished:
      path = path.parent / f'tmp-{path.name}'
    path.unlink(missing_ok=True)
    deleted.append(name)
  return deleted


def _header(array: np.ndarray) -> bytes:
  stream = io.BytesIO()
  header = np.lib.format.header_data_from_array_1_0(array)
  np.lib.format.write_array_header_1_0(stream, header)
  return stream.getvalue()


def _view(array: np.ndarray) -> memoryview:
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _read(path: epath.Path) -> np.ndarray:
  """Returns the bytes of a file, uint8."""
  if not is_local(path):
    return np.frombuffer(path.read_bytes(), np.uint8)
  # Large NumPy arrays use huge pages: twice as fast as `read_bytes`.
  data = np.empty(path.stat().length, np.uint8)
  with path.open('rb') as file:
    return data[: file.readinto(data)]


def _read_at(file: BinaryIO, start: int, stop: int) -> bytes:
  file.seek(start)
  return file.read(stop - start)


@contextlib.contextmanager
def _explained(path: epath.Path) -> Iterator[None]:
  """Names a file that is missing or has another content."""
  try:
    yield
  except FileNotFoundError:
    raise ReplayCorrupt(f'replay file {path} is missing; {_ADVICE}') from None
  except (TypeError, ValueError):
    raise ReplayCorrupt(f'{path} is not a replay file; {_ADVICE}') from None


def _verify(
  path: epath.Path, record: Mapping[str, Any], size: int, crc: int
) -> None:
  if size != record['bytes']:
    raise ReplayCorrupt(
      f'replay file {path} has {size} bytes instead of {record["bytes"]}; '
      f'{_ADVICE}'
    )
  if crc != record['crc']:
    raise ReplayCorrupt(
      f'replay file {path} is corrupt (wrong checksum); {_ADVICE}'
    )


def _locate(size: int, read: Callable[[int, int], bytes]) -> Iterator[Stored]:
  """Yields the arrays of a file; `read` returns bytes start..stop of it."""
  # NumPy's reader evaluates headers with `ast`, which occasionally fails with
  # SystemError in several threads of Python 3.11.
  start = 0
  while start < size:
    length = int.from_bytes(read(start + 8, start + 10), 'little')
    match = _HEADER.match(read(start + 10, start + 10 + length))
    if match is None:
      raise ValueError('not a header of a replay file')
    shape = tuple(int(x) for x in match[2].split(b',') if x.strip())
    array = Stored(start + 10 + length, np.dtype(match[1].decode()), shape)
    yield array
    start = array.stop
