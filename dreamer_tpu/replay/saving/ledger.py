"""Assigns rows to files: finds what to write and which files to keep.

A `steps` file holds whole steps. A `latents` file holds latents that were
overwritten after they had been written. Each snapshot packs both into files of
about 64 MiB, so that the number of files does not grow with the number of
chunks. Reading the files of a manifest in the order of their index restores
the memory: later rows replace earlier ones.

A latents file is compacted, its current rows written again, once at most 5% of
its rows are current (write amplification at most 5.3%). If the latents files
hold more than four times the current rows, the emptiest are compacted earlier.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dreamer_tpu.replay.chunks import Chunk

STEPS = 'steps'
LATENTS = 'latents'
PRIORITIES = 'priorities'  # Written whole by every save.

FILE_BYTES = 64 * 2**20
_MIN_CURRENT = 0.05
_MAX_AMPLIFICATION = 4


@dataclasses.dataclass(eq=False)
class Record:
  """A file of a shard.

  Attributes:
    index: Number of the file.
    kind: `STEPS`, `LATENTS` or `PRIORITIES`.
    rows: Number of rows.
    runs: Runs of rows in memory, int64 [r, 3]: serial, start, stop.
    name: Name relative to the replay directory.
    bytes: Size.
    crc: CRC-32.
  """

  index: int
  kind: str
  rows: int
  runs: np.ndarray
  name: str = ''
  bytes: int = 0
  crc: int = 0

  def to_json(self) -> dict[str, Any]:
    """Returns the file's entry in a manifest."""
    entry = vars(self).copy()
    del entry['runs']
    return entry


class Ledger:
  """Files of a replay shard and the rows in them. Not thread-safe.

  Attributes:
    files: Files on disk that the next snapshot may keep, by index.
  """

  def __init__(self, row_bytes: int, latent_bytes: int) -> None:
    self._row_bytes = {STEPS: row_bytes, LATENTS: latent_bytes}
    self._next = 0
    # The file with the newest version of each row, -1 for none, by serial.
    self._newest: dict[int, np.ndarray] = {}
    self.files: dict[int, Record] = {}

  def track(self, chunks: Mapping[int, Chunk]) -> None:
    """Adds new chunks and removes those that were dropped from memory."""
    old = self._newest
    self._newest = {
      serial: old[serial]
      if serial in old
      else np.full(len(chunk.dirty), -1, np.int32)
      for serial, chunk in chunks.items()
    }

  def plan(
    self, chunks: Mapping[int, Chunk]
  ) -> tuple[list[Record], list[Record]]:
    """Assigns all rows that are not on disk to new files.

    Clears the dirty masks. Finish with either `commit` or `undo`.

    Returns:
      The files to keep and the files to write.
    """
    self.track(chunks)
    ordered = sorted(chunks.values(), key=lambda x: (x.stream, x.serial))
    counts = self._count_current(ordered)
    stale = self._find_stale(counts)
    runs: dict[str, list[np.ndarray]] = {STEPS: [], LATENTS: []}
    for chunk in ordered:
      newest = self._newest[chunk.serial][: chunk.fill]
      unsaved = newest < 0
      dirty = (chunk.dirty[: chunk.fill] | stale[newest]) & ~unsaved
      runs[STEPS].append(_find_runs(chunk.serial, unsaved))
      runs[LATENTS].append(_find_runs(chunk.serial, dirty))
      chunk.dirty[:] = False
    kept = [
      file
      for file in self.files.values()
      if (counts[file.index] and not stale[file.index])
      or (file.kind == STEPS and chunks.keys() & file.runs[:, 0].tolist())
    ]
    new = [
      self.new_file(kind, pack)
      for kind, parts in runs.items()
      for pack in self._pack(kind, parts)
    ]
    return kept, new

  def new_file(self, kind: str, runs: np.ndarray) -> Record:
    """Returns a file with the next index."""
    self._next += 1
    return Record(self._next - 1, kind, _rows(runs), runs)

  def size(self, file: Record) -> int:
    """Returns the bytes of the rows of a file."""
    return file.rows * self._row_bytes[file.kind]

  def commit(self, kept: list[Record], new: list[Record]) -> None:
    """Takes over the files of a plan after they are written."""
    self.files = {file.index: file for file in (*kept, *new)}
    for file in new:
      self._set_newest(file.runs, file.index)

  def undo(self, new: list[Record], chunks: Mapping[int, Chunk]) -> None:
    """Marks the rows of files that were not written as not on disk."""
    for file in new:
      for serial, start, stop in file.runs.tolist():
        if serial in chunks:
          chunks[serial].dirty[start:stop] = True

  def register(self, entry: Mapping[str, Any], runs: np.ndarray) -> None:
    """Takes over a file of an earlier run; call in the order of its index.

    Args:
      entry: The file's entry in its manifest.
      runs: Runs of rows in tracked chunks, int64 [r, 3].
    """
    file = Record(**entry, runs=runs)
    self.files[file.index] = file
    self._next = max(self._next, file.index + 1)
    self._set_newest(runs, file.index)

  def mark_lost(self, name: str, chunks: Mapping[int, Chunk]) -> None:
    """Marks the rows of a file that disappeared from disk as not on disk."""
    for lost in [x for x in self.files.values() if x.name == name]:
      del self.files[lost.index]
      if lost.kind == STEPS:
        self._set_newest(lost.runs, -1)
      for serial, newest in self._newest.items():
        if serial in chunks:
          chunks[serial].dirty |= newest == lost.index

  def _set_newest(self, runs: np.ndarray, index: int) -> None:
    for serial, start, stop in runs.tolist():
      if serial in self._newest:
        self._newest[serial][start:stop] = index

  def _count_current(self, chunks: Sequence[Chunk]) -> np.ndarray:
    """Returns how many rows of each file are the newest version of theirs."""
    parts = [np.zeros(0, np.int32)]
    for chunk in chunks:
      newest = self._newest[chunk.serial]
      parts.append(newest[(newest >= 0) & ~chunk.dirty])
    return np.bincount(np.concatenate(parts), minlength=self._next)

  def _find_stale(self, counts: np.ndarray) -> np.ndarray:
    """Returns for each file, and for index -1, whether it is compacted."""
    stale = np.zeros(self._next + 1, bool)
    latents = [
      x for x in self.files.values() if x.kind == LATENTS and counts[x.index]
    ]
    total = sum(x.rows for x in latents)
    limit = _MAX_AMPLIFICATION * sum(int(counts[x.index]) for x in latents)
    for file in sorted(latents, key=lambda x: counts[x.index] / x.rows):
      current = int(counts[file.index])
      if current > _MIN_CURRENT * file.rows and total <= limit:
        break
      stale[file.index] = True
      total -= file.rows - current
    return stale

  def _pack(self, kind: str, parts: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Groups runs, in their order, into files."""
    packs: list[list[np.ndarray]] = []
    size = FILE_BYTES
    for runs in parts:
      if not len(runs):
        continue
      if size >= FILE_BYTES:
        packs.append([])
        size = 0
      packs[-1].append(runs)
      size += _rows(runs) * self._row_bytes[kind]
    return [np.concatenate(pack) for pack in packs]


def _rows(runs: np.ndarray) -> int:
  return int(np.sum(runs[:, 2] - runs[:, 1]))


def _find_runs(serial: int, mask: np.ndarray) -> np.ndarray:
  """Returns the runs of rows set in a mask, int64 [r, 3]."""
  if not mask.any():
    return np.zeros((0, 3), np.int64)
  padded = np.zeros(len(mask) + 2, bool)
  padded[1:-1] = mask
  edges = np.flatnonzero(padded[1:] != padded[:-1])
  runs = np.full((len(edges) // 2, 3), serial, np.int64)
  runs[:, 1:] = edges.reshape(-1, 2)
  return runs
