"""Chunks: arrays that hold consecutive steps of one stream."""

import itertools
import mmap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

LATENT = 'latent/'

Arrays = dict[str, np.ndarray]

_ALIGNMENT = 64  # Bytes of a cache line.
_MAPPED = 1 << 20  # Bytes of a chunk from which it is mapped.


class Field(NamedTuple):
  """One key of a step.

  Attributes:
    shape: Shape per step.
    dtype: Dtype of steps and samples.
    stored: Dtype in memory and in files.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  stored: np.dtype

  @property
  def nbytes(self) -> int:
    """Bytes per step."""
    return self.stored.itemsize * int(np.prod(self.shape, dtype=np.int64))

  def describe(self) -> str:
    """Returns a text such as 'uint8 [64, 64, 3]'."""
    return f'{self.dtype.name} {list(self.shape)}'

  def to_stored(
    self, key: str, value: np.ndarray, lead: tuple[int, ...]
  ) -> np.ndarray:
    """Returns an array [*lead, ...] of this key as it is stored.

    Raises:
      ValueError: Its shape or dtype is another.
    """
    value = np.asarray(value)
    if value.shape != lead + self.shape or value.dtype != self.dtype:
      raise ValueError(
        f'{key!r} is {value.dtype.name} {list(value.shape)}, the replay '
        f'takes {self.dtype.name} {[*lead, *self.shape]}'
      )
    return value if self.stored == self.dtype else value.view(self.stored)


def parse_spec(spec: Mapping[str, tuple]) -> dict[str, Field]:
  """Returns the fields of a spec {key: (shape, dtype)}, sorted by key.

  Dtypes that are not native to NumPy (bfloat16) are stored as unsigned
  integers of equal size. Copying those is several times faster, and files do
  not depend on ml_dtypes.
  """
  fields = {}
  for key, (shape, dtype) in sorted(spec.items()):
    if isinstance(dtype, str) and hasattr(ml_dtypes, dtype):
      dtype = getattr(ml_dtypes, dtype)
    dtype = np.dtype(dtype)
    native = dtype.isbuiltin == 1
    stored = dtype if native else np.dtype(f'uint{8 * dtype.itemsize}')
    fields[key] = Field(tuple(int(x) for x in shape), dtype, stored)
  return fields


def latent_keys(fields: Iterable[str]) -> list[str]:
  """Returns the keys that may be overwritten after insertion."""
  return [key for key in fields if key.startswith(LATENT)]


def to_stored(
  steps: Mapping[str, np.ndarray],
  fields: Mapping[str, Field],
  lead: tuple[int, ...],
) -> Arrays:
  """Returns steps, arrays [*lead, ...] by key, as they are stored.

  Raises:
    ValueError: A key, shape or dtype differs from the fields.
  """
  if steps.keys() != fields.keys():
    names = sorted(steps.keys() ^ fields.keys())
    raise ValueError(f'step and replay spec differ in the keys {names}')
  return {
    key: field.to_stored(key, steps[key], lead) for key, field in fields.items()
  }


class Chunk:
  """Up to `rows` consecutive steps of one stream.

  Rows are appended and, except for latents, never change. The arrays are not
  initialized: the system provides memory only as rows are filled, and takes it
  back when the chunk is dropped.

  Attributes:
    serial: Number of the chunk, in the order in which chunks are opened.
    stream: Number of the stream. All chunks of a stream but the last are full.
    inserted_at: Steps inserted into the shard before the chunk was opened.
    arrays: Stored arrays [rows, ...] by key.
    latents: The arrays whose rows may be overwritten.
    imported: Whether the steps came from elsewhere, not from environments.
    fill: Rows in use.
    next: The next chunk of the stream.
    dirty: Whether latents changed since the last snapshot, bool [rows].
  """

  def __init__(
    self,
    serial: int,
    stream: int,
    inserted_at: int,
    rows: int,
    fields: Mapping[str, Field],
    imported: bool = False,
  ) -> None:
    self.serial = serial
    self.stream = stream
    self.inserted_at = inserted_at
    self.imported = imported
    self.arrays = _allocate(rows, fields)
    self.latents = {key: self.arrays[key] for key in latent_keys(fields)}
    self.fill = 0
    self.next: Chunk | None = None
    self.dirty = np.zeros(rows, bool)

  @property
  def nbytes(self) -> int:
    """Bytes of the arrays."""
    return sum(array.nbytes for array in self.arrays.values())

  def overwrite(self, start: int, stop: int, values: Arrays) -> None:
    """Replaces the latents of rows start..stop."""
    for key, value in values.items():
      self.latents[key][start:stop] = value
    self.dirty[start:stop] = True


def find_rows(
  addresses: np.ndarray, chunksize: int, chunks: Mapping[int, Chunk]
) -> Iterator[tuple[Chunk, int, int, slice]]:
  """Finds the stored rows among addresses, int64 [n], in runs.

  Yields:
    Chunk, first row in it, row after the last, and slice of `addresses`.
  """
  serials, rows = np.divmod(addresses, chunksize)
  breaks = (np.diff(addresses) != 1) | (np.diff(serials) != 0)
  cuts = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(addresses)]
  for begin, end in itertools.pairwise(cuts):
    chunk = chunks.get(int(serials[begin]))
    if chunk is not None:
      start = int(rows[begin])
      stop = min(start + end - begin, chunk.fill)
      if start < stop:
        yield chunk, start, stop, slice(begin, begin + stop - start)


def _allocate(rows: int, fields: Mapping[str, Field]) -> Arrays:
  """Returns arrays [rows, ...], in a mapping of their own if they are large."""
  starts = [0]
  for field in fields.values():
    size = rows * field.nbytes
    starts.append(starts[-1] + size + -size % _ALIGNMENT)
  memory: Any
  if starts[-1] < _MAPPED:
    memory = np.empty(starts[-1], np.uint8)
  else:
    # From the heap, dropped chunks would not return to the system.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, starts[-1], flags)
  return {
    key: np.ndarray((rows, *field.shape), field.stored, memory, start)
    for start, (key, field) in zip(starts, fields.items(), strict=False)
  }
