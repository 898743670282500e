"""Chunks: the memory that holds consecutive steps of one stream."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

LATENT = 'latent/'

Arrays = dict[str, np.ndarray]


class Field(NamedTuple):
  """One key of a step: its shape, its dtype, and the dtype it is kept in."""

  shape: tuple[int, ...]
  dtype: np.dtype
  stored: np.dtype

  @property
  def nbytes(self) -> int:
    """Bytes per step."""
    return self.stored.itemsize * int(np.prod(self.shape, dtype=np.int64))

  def describe(self) -> str:
    """Returns 'uint8 [64, 64, 3]'."""
    return f'{self.dtype.name} {list(self.shape)}'


def parse_dtype(dtype: Any) -> np.dtype:
  """Returns the dtype of a name ('bfloat16' included) or type."""
  if isinstance(dtype, str) and hasattr(ml_dtypes, dtype):
    dtype = getattr(ml_dtypes, dtype)
  return np.dtype(dtype)


def parse_spec(spec: Mapping[str, tuple]) -> dict[str, Field]:
  """Returns the fields of a spec {key: (shape, dtype)}, keys sorted.

  Types that NumPy does not know itself (bfloat16) are kept as unsigned
  integers of the same size: copies of them are several times faster, and
  files need no knowledge of them.
  """
  fields = {}
  for key, (shape, dtype) in sorted(spec.items()):
    dtype = parse_dtype(dtype)
    native = dtype.isbuiltin == 1
    stored = dtype if native else np.dtype(f'uint{8 * dtype.itemsize}')
    fields[key] = Field(tuple(int(x) for x in shape), dtype, stored)
  return fields


def latent_keys(fields: Iterable[str]) -> list[str]:
  """Returns the keys that may be overwritten after they were added."""
  return [key for key in fields if key.startswith(LATENT)]


class Pending:
  """Rows of a chunk that a snapshot still has to copy.

  Whoever overwrites a row that is marked in `need` puts its old value aside
  first; the copy takes it from there. When no row is marked in `waiting` any
  more, the chunk is done.
  """

  def __init__(self, rows: int) -> None:
    self.need = np.zeros(rows, bool)
    self.waiting = np.zeros(rows, bool)
    self._kept: list[tuple[np.ndarray, Arrays]] = []

  def add(self, rows: np.ndarray) -> None:
    """Marks rows to be copied as they are now."""
    self.need[rows] = True
    self.waiting[rows] = True

  def keep(self, latents: Arrays, start: int, stop: int) -> None:
    """Puts those of the rows start..stop aside that are still needed."""
    rows = start + np.flatnonzero(self.need[start:stop])
    if rows.size:
      old = {key: array[rows] for key, array in latents.items()}
      self._kept.append((rows, old))
      self.need[rows] = False

  def finish(self, rows: np.ndarray, out: Arrays) -> None:
    """Puts old values in their places of a copy of rows, which are done."""
    if self._kept:
      places = np.full(len(self.need), -1)
      places[rows] = np.arange(len(rows))
      for kept, old in self._kept:
        found = places[kept] >= 0
        for key, values in old.items():
          out[key][places[kept[found]]] = values[found]
    self.need[rows] = False
    self.waiting[rows] = False

  @property
  def nbytes(self) -> int:
    """Memory of the values put aside."""
    arrays = [array for _, old in self._kept for array in old.values()]
    return sum(array.nbytes for array in arrays)


class Chunk:
  """Up to `rows` consecutive steps of one stream.

  Rows are appended and never change, but for the latents. The arrays are not
  initialized, so that the system hands out memory only as rows are filled.

  Attributes:
    serial: Position in the order of chunks of the shard, also its address.
    stream: Identifies the stream; its chunks have rising serials, and all but
      the last are full.
    born: Steps that the shard had taken in when the chunk was opened.
    arrays: Stored arrays [rows, ...] by key; `latents` is the part of them
      that may change.
    fill: Rows in use.
    next: The chunk that goes on where this one ends.
    saved: Rows that were handed to a file.
    dirty: bool [rows], rows whose latents changed since they were handed to
      a file; `touched` says whether there are any.
    source: int32 [rows] or None, the index of the latents file that holds
      each row's latents, -1 for the file with the rest of the step.
    files: The rows (start, stop) in each steps file, by index of the file.
    pending: What a snapshot still has to read.
  """

  def __init__(
    self,
    serial: int,
    stream: int,
    born: int,
    rows: int,
    fields: Mapping[str, Field],
  ) -> None:
    self.serial = serial
    self.stream = stream
    self.born = born
    self.arrays: Arrays = {
      key: np.empty((rows, *field.shape), field.stored)
      for key, field in fields.items()
    }
    self.latents = {key: self.arrays[key] for key in latent_keys(fields)}
    self.fill = 0
    self.next: Chunk | None = None
    self.saved = 0
    self.dirty = np.zeros(rows, bool)
    self.touched = False
    self.source: np.ndarray | None = None
    self.files: dict[int, tuple[int, int]] = {}
    self.pending: Pending | None = None

  def overwrite(self, start: int, values: Arrays) -> None:
    """Replaces the latents of consecutive rows from `start` on."""
    stop = start + len(next(iter(values.values())))
    if self.pending is not None:
      self.pending.keep(self.latents, start, stop)
    for key, value in values.items():
      self.latents[key][start:stop] = value
    self.dirty[start:stop] = True
    self.touched = True

  def mark(self, rows: np.ndarray) -> None:
    """Marks latents to be written again."""
    if rows.size:
      self.dirty[rows] = True
      self.touched = True
