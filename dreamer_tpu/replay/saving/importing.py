"""Writes steps from elsewhere as a saved replay, without holding them."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.replay.chunks import Chunk, parse_spec, to_stored
from dreamer_tpu.replay.rng import make_rng, rng_state
from dreamer_tpu.replay.saving import files, ledger, loading


class ImportWriter:
  """Writes one imported stream of steps; `Replay.load` reads it.

  Holds the steps of one file, about 64 MiB, at a time. The files mean nothing
  before the manifest is stored: `prune` deletes those of an import that failed.

  Attributes:
    steps: Steps added so far.
  """

  def __init__(
    self,
    spec: Mapping[str, tuple[tuple[int, ...], Any]],
    directory: epath.PathLike,
    *,
    length: int,
    chunksize: int,
    seed: int = 0,
    shard: int = 0,
  ) -> None:
    """Starts without steps.

    Args:
      spec: Shape and dtype per step of every key, as for `Replay`.
      directory: The replay directory. Files go to directory/SHARD/.
      length: Steps per sequence of the replay that will load them.
      chunksize: Steps per chunk of that replay.
      seed: Random seed of sampling after `Replay.load`.
      shard: Number of the shard.
    """
    self.steps = 0
    self._fields = parse_spec(spec)
    self._directory = epath.Path(directory)
    self._length = length
    self._chunksize = chunksize
    self._seed = seed
    self._shard = shard
    listing = files.list_files(directory, shard)
    self._generation = 1 + max((x for _, x, _ in listing), default=0)
    self._records: list[ledger.Record] = []
    self._stream: list[list[int]] = []  # As in a manifest.
    self._chunks: list[Chunk] = []  # Not written yet.

  def add(self, steps: Mapping[str, np.ndarray]) -> None:
    """Copies consecutive steps, such as an episode.

    Args:
      steps: Arrays [T, ...] with the keys, shapes and dtypes of the spec. The
        first step must have is_first set.

    Raises:
      ValueError: The steps do not match the spec; none of them is stored.
      OSError: A file cannot be written.
    """
    count = len(steps.get('is_first', ()))
    stored = to_stored(steps, self._fields, (count,))
    if not count or not steps['is_first'][0]:
      raise ValueError("the first of the steps to import must have 'is_first'")
    done = 0
    while done < count:
      chunk = self._open_chunk()
      rows = min(count - done, self._chunksize - chunk.fill)
      for key, array in chunk.arrays.items():
        array[chunk.fill : chunk.fill + rows] = stored[key][done : done + rows]
      chunk.fill += rows
      done += rows
      self.steps += rows
      self._stream[-1][1] = chunk.fill

  def finish(self) -> dict[str, Any]:
    """Writes the rest and returns the manifest, a dict of JSON values.

    Raises:
      OSError: A file cannot be written.
    """
    self._write()
    return {
      'format': loading.FORMAT,
      'shard': self._shard,
      'spec': loading.spec_to_json(self._fields),
      'length': self._length,
      'chunksize': self._chunksize,
      'width': 1,
      'streams': [self._stream] if self._stream else [],
      'imported': [0] if self._stream else [],
      'open': [],
      'position': 0,
      'next_serial': len(self._stream),
      'inserted': self.steps,
      'online': [],
      'counts': [0, 0],
      'rng': rng_state(make_rng(self._seed)),
      'files': [record.to_json() for record in self._records],
    }

  def _open_chunk(self) -> Chunk:
    """Returns the chunk that takes the next step."""
    if self._chunks and self._chunks[-1].fill < self._chunksize:
      return self._chunks[-1]
    if sum(chunk.nbytes for chunk in self._chunks) >= ledger.FILE_BYTES:
      self._write()
    serial = len(self._stream)
    chunk = Chunk(serial, 0, self.steps, self._chunksize, self._fields, True)
    self._chunks.append(chunk)
    self._stream.append([serial, 0, self.steps])
    return chunk

  def _write(self) -> None:
    """Writes the chunks in memory to a file and forgets them."""
    if not self._chunks:
      return
    fills = [(chunk.serial, chunk.fill) for chunk in self._chunks]
    runs = np.array([(serial, 0, fill) for serial, fill in fills], np.int64)
    index = len(self._records)
    name = files.file_name(self._shard, ledger.STEPS, self._generation, index)
    path = self._directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = (
      np.concatenate([x.arrays[key][: x.fill] for x in self._chunks])
      for key in self._fields
    )
    size, crc = files.write_file(path, itertools.chain([runs], arrays))
    files.sync_folder(path.parent)
    rows = int(runs[:, 2].sum())
    record = ledger.Record(index, ledger.STEPS, rows, runs, name, size, crc)
    self._records.append(record)
    self._chunks.clear()
