"""Which file holds which row: what has to be written, what may be forgotten.

Rows reach the disk in two kinds of files. A `steps` file holds whole steps, a
`latents` file the latents of steps that were overwritten after they had been
written. Within a snapshot both are packed to files of about 64 MiB, so that
the number of files does not grow with the number of chunks. Read in the order
of their index, later rows over earlier ones, the files of a manifest give the
memory back.

A file is named by manifests as long as one of its rows is live: its step is
still stored and, for latents, not written again since. The last rows of a
worn-out latents file are written again with the next snapshot. As that
happens when a twentieth of its rows is live, it adds at most 5.3% to what is
written. Under uniform sampling the latents files together come to 3.2 times
the latents that they hold; where it would be more than 4 times, the emptiest
files are given up earlier.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from dreamer_tpu.replay.chunks import Chunk, Pending

STEPS = 'steps'
LATENTS = 'latents'
PRIORITIES = 'priorities'  # Not in the ledger: every save has one of its own.

_FILE_BYTES = 64 * 2**20
_WORN = 0.05
_SPARE = 4

Part = tuple[Chunk, np.ndarray]


@dataclasses.dataclass
class Record:
  """A file: `rows` in it, of which `live` are needed; the rest once written."""

  index: int
  kind: str
  rows: int
  live: int
  name: str = ''
  bytes: int = 0
  crc: int = 0

  def to_json(self) -> dict[str, Any]:
    """Returns the file's entry of a manifest."""
    entry = dataclasses.asdict(self)
    del entry['live']
    return entry


@dataclasses.dataclass(frozen=True)
class Plan:
  """A file to write: the rows of each chunk that go into it."""

  record: Record
  parts: list[Part]


class Ledger:
  """Keeps the files of one replay shard. Not thread-safe by itself."""

  def __init__(self, row_bytes: int, latent_bytes: int) -> None:
    self._row_bytes = {STEPS: row_bytes, LATENTS: latent_bytes}
    self._next = 0
    self.files: dict[int, Record] = {}

  def plan(self, chunks: Iterable[Chunk]) -> list[Plan]:
    """Assigns everything that is not on disk yet to new files.

    From here on the rows count as written; `undo` takes that back. Every
    chunk with something to write gets a `pending` mask.
    """
    chunks = sorted(chunks, key=lambda chunk: (chunk.stream, chunk.serial))
    self._mark_worn(chunks)
    steps: list[Part] = []
    latents: list[Part] = []
    for chunk in chunks:
      if chunk.touched:
        rows = np.flatnonzero(chunk.dirty[: chunk.saved])
        if rows.size:
          latents.append((chunk, rows))
        chunk.dirty[:] = False
        chunk.touched = False
      if chunk.fill > chunk.saved:
        steps.append((chunk, np.arange(chunk.saved, chunk.fill)))
    plans = [self._assign(STEPS, parts) for parts in self._pack(STEPS, steps)]
    plans += [
      self._assign(LATENTS, parts) for parts in self._pack(LATENTS, latents)
    ]
    self.drop_dead()
    return plans

  def undo(self, plans: Iterable[Plan]) -> None:
    """Marks the rows of files that were not written as not on disk."""
    for plan in plans:
      self.files.pop(plan.record.index, None)
      for chunk, rows in plan.parts:
        chunk.pending = None
        if plan.record.kind == LATENTS:
          chunk.mark(rows)
        else:
          self._unsave(chunk, int(rows[0]))
    self.drop_dead()

  def evict(self, chunk: Chunk) -> None:
    """Takes the rows of a chunk that is dropped from memory out."""
    self._unsave(chunk, 0)
    self._supersede(chunk, np.arange(chunk.fill), -1)
    self.drop_dead()

  def lose(self, name: str, chunks: Iterable[Chunk]) -> None:
    """Marks all rows of a file that is gone from the disk to be rewritten."""
    lost = [x.index for x in self.files.values() if x.name == name]
    for chunk in chunks:
      for index in lost:
        if index in chunk.files:
          self._unsave(chunk, chunk.files[index][0])
        if chunk.source is not None:
          chunk.mark(np.flatnonzero(chunk.source == index))
    for index in lost:
      self.files.pop(index, None)
    self.drop_dead()

  def adopt(self, record: Record, parts: Iterable[Part]) -> None:
    """Takes over a file of an earlier run, read in the order of its index.

    Args:
      record: The file as its manifest names it.
      parts: The rows of it that are in memory.
    """
    record.live = 0
    self.files[record.index] = record
    self._next = max(self._next, record.index + 1)
    for chunk, rows in parts:
      self._place(record, chunk, rows)

  def _assign(self, kind: str, parts: list[Part]) -> Plan:
    record = Record(self._next, kind, sum(len(rows) for _, rows in parts), 0)
    self._next += 1
    self.files[record.index] = record
    for chunk, rows in parts:
      if chunk.pending is None:
        chunk.pending = Pending(chunk.fill)
      chunk.pending.add(rows)
      self._place(record, chunk, rows)
    return Plan(record, parts)

  def _place(self, record: Record, chunk: Chunk, rows: np.ndarray) -> None:
    """Notes that a file holds the newest form of rows of a chunk."""
    if record.kind == STEPS:
      start, stop = int(rows[0]), int(rows[-1]) + 1
      chunk.files[record.index] = (start, stop)
      chunk.saved = max(chunk.saved, stop)
      self._supersede(chunk, rows, -1)
    else:
      self._supersede(chunk, rows, record.index)
    record.live += len(rows)

  def _supersede(self, chunk: Chunk, rows: np.ndarray, index: int) -> None:
    """The latents of these rows are in file `index` from now on."""
    if chunk.source is None:
      if index < 0:
        return
      chunk.source = np.full(len(chunk.dirty), -1, np.int32)
    old = chunk.source[rows]
    old = old[old >= 0]
    if old.size:
      low = int(old.min())
      counts = np.bincount(old - low)
      for other in np.flatnonzero(counts).tolist():
        if low + other in self.files:
          self.files[low + other].live -= int(counts[other])
    chunk.source[rows] = index

  def _unsave(self, chunk: Chunk, row: int) -> None:
    """The chunk's steps from `row` on are in no file (that counts) any more."""
    for index, (start, stop) in list(chunk.files.items()):
      if stop > row:
        del chunk.files[index]
        row = min(row, start)
        if index in self.files:
          self.files[index].live -= stop - start
    chunk.saved = min(chunk.saved, row)

  def _pack(self, kind: str, parts: list[Part]) -> list[list[Part]]:
    """Groups parts, in their order, to files of the size we want."""
    packs: list[list[Part]] = []
    size = _FILE_BYTES
    for chunk, rows in parts:
      if size >= _FILE_BYTES:
        packs.append([])
        size = 0
      packs[-1].append((chunk, rows))
      size += len(rows) * self._row_bytes[kind]
    return packs

  def _mark_worn(self, chunks: list[Chunk]) -> None:
    """Marks the last live rows of latents files that are to be given up."""
    files = [x for x in self.files.values() if x.kind == LATENTS]
    files.sort(key=lambda x: x.live / x.rows)
    total = sum(x.rows for x in files)
    limit = _SPARE * sum(x.live for x in files)
    worn = np.zeros(self._next + 1, bool)  # The last for source == -1.
    for file in files:
      if file.live > _WORN * file.rows and total <= limit:
        break
      worn[file.index] = True
      total -= file.rows - file.live
    if worn.any():
      for chunk in chunks:
        if chunk.source is not None:
          chunk.mark(np.flatnonzero(worn[chunk.source[: chunk.fill]]))

  def drop_dead(self) -> None:
    """Forgets the files that have no live rows."""
    for index in [x.index for x in self.files.values() if x.live <= 0]:
      del self.files[index]
