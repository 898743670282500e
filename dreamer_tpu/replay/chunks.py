"""Chunks: arrays that hold consecutive steps of one stream."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

LATENT = 'latent/'

Arrays = dict[str, np.ndarray]


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


def split_runs(
  addresses: np.ndarray, chunksize: int
) -> Iterator[tuple[int, int, slice]]:
  """Splits addresses, int64 [n], into runs of consecutive rows of a chunk.

  Yields:
    Serial of the chunk, first row in it, and slice of `addresses`.
  """
  serials, rows = np.divmod(addresses, chunksize)
  breaks = (np.diff(addresses) != 1) | (np.diff(serials) != 0)
  cuts = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(addresses)]
  for start, stop in itertools.pairwise(cuts):
    yield int(serials[start]), int(rows[start]), slice(start, stop)


class Chunk:
  """Up to `rows` consecutive steps of one stream.

  Rows are appended and, except for latents, never change. The arrays are not
  initialized: the system provides memory only as rows are filled.

  Attributes:
    serial: Number of the chunk, in the order in which chunks are opened.
    stream: Number of the stream. All chunks of a stream but the last are full.
    inserted_at: Steps inserted into the shard before the chunk was opened.
    arrays: Stored arrays [rows, ...] by key.
    latents: The arrays whose rows may be overwritten.
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
  ) -> None:
    self.serial = serial
    self.stream = stream
    self.inserted_at = inserted_at
    self.arrays: Arrays = {
      key: np.empty((rows, *field.shape), field.stored)
      for key, field in fields.items()
    }
    self.latents = {key: self.arrays[key] for key in latent_keys(fields)}
    self.fill = 0
    self.next: Chunk | None = None
    self.dirty = np.zeros(rows, bool)

  def overwrite(self, start: int, stop: int, values: Arrays) -> None:
    """Replaces the latents of rows start..stop."""
    for key, value in values.items():
      self.latents[key][start:stop] = value
    self.dirty[start:stop] = True
