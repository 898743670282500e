"""Saving in two phases: freeze in memory, write while the replay goes on."""

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.replay.chunks import Arrays, Chunk, Field, latent_keys
from dreamer_tpu.replay.saving import files
from dreamer_tpu.replay.saving.ledger import (
  LATENTS,
  PRIORITIES,
  Ledger,
  Part,
  Plan,
  Record,
)


class Journal:
  """What a replay shard has on disk, and the snapshot under way.

  Attributes:
    fields: The fields of a step.
    lock: Guards the chunks and the ledger; the replay's own lock.
    ledger: Which file holds which row.
  """

  def __init__(
    self,
    shard: int,
    fields: dict[str, Field],
    chunks: Mapping[int, Chunk],
    lock: threading.Lock,
  ) -> None:
    self.shard = shard
    self.fields = fields
    self.lock = lock
    self._chunks = chunks
    self._home = ''  # Where the files of the ledger are.
    self._generation: int | None = None
    self._current: Snapshot | None = None
    self._last: set[str] = set()  # Names in the newest manifest.
    self._saves = 0
    self.ledger = self._new_ledger()

  def snapshot(
    self,
    directory: epath.PathLike,
    state: dict[str, Any],
    priorities: dict[int, np.ndarray],
  ) -> 'Snapshot':
    """Freezes the shard; the caller holds the lock.

    Args:
      directory: The replay directory.
      state: The manifest, but for its files.
      priorities: Of the steps of each chunk, by serial; may be none.

    Raises:
      RuntimeError: If the previous snapshot is not written yet.
    """
    if self._current is not None:
      raise RuntimeError('the previous replay snapshot is still being written')
    home = str(epath.Path(directory))
    if home != self._home:
      self.forget()
      self._home = home
    plans = self.ledger.plan(self._chunks.values())
    records = list(self.ledger.files.values())
    self._saves += 1
    self._current = Snapshot(self, home, state, plans, records)
    self._current.priorities = priorities
    self._current.number = self._saves
    return self._current

  def adopt(self, directory: epath.PathLike) -> None:
    """States where the files are that the ledger was given by a load."""
    self._home = str(epath.Path(directory))

  def forget(self) -> None:
    """Counts every row as unwritten."""
    self._home = ''
    self._generation = None
    self.ledger = self._new_ledger()
    for chunk in self._chunks.values():
      chunk.saved = 0
      chunk.files = {}
      chunk.source = None

  def generation(self, existing: Iterable[int]) -> int:
    """Returns the number that sets this run's file names apart.

    Files of a run that was killed before it committed them stay around under
    names that no later run may take.
    """
    if self._generation is None:
      self._generation = 1 + max(existing, default=0)
    return self._generation

  def lose(self, names: Iterable[str]) -> None:
    """Has the rows of files that are gone written again."""
    with self.lock:
      for name in names:
        self.ledger.lose(name, self._chunks.values())

  def finish(self, names: set[str] | None) -> None:
    """Ends the snapshot: `names` are those in its manifest, None if failed."""
    if names is not None:
      self._last = names
    self._current = None

  def prune(
    self, directory: epath.PathLike, manifests: Iterable[Mapping[str, Any]]
  ) -> list[str]:
    """Deletes this shard's files that nothing needs; see `Replay.prune`."""
    # The listing comes first: a file that is written meanwhile is not in it.
    listing = files.listing(directory, self.shard)
    with self.lock:
      keep = files.named(manifests) | self._last
      keep |= {record.name for record in self.ledger.files.values()}
      if self._current is not None:
        keep |= self._current.names
    return files.prune_listed(directory, listing, keep)

  def _new_ledger(self) -> Ledger:
    latents = latent_keys(self.fields)
    return Ledger(
      sum(field.nbytes for field in self.fields.values()),
      sum(self.fields[key].nbytes for key in latents),
    )


class Snapshot:
  """The state of a replay at one moment; made by `Replay.snapshot`.

  Steps never change once they are stored, so that the snapshot only has to
  remember how far each chunk was filled. Latents do change: whoever
  overwrites a row that is still to be copied sets its old value aside
  (`chunks.Pending`), which costs memory for those rows alone, until their
  chunk is copied.

  Attributes:
    priorities: Of the steps of each chunk, by serial.
    number: Of the snapshot.
    written: Bytes that `write` has written.
  """

  def __init__(
    self,
    journal: Journal,
    directory: str,
    state: dict[str, Any],
    plans: list[Plan],
    records: list[Record],
  ) -> None:
    self._journal = journal
    self._directory = epath.Path(directory)
    self._state = state
    self._plans = plans
    self._records = records
    self._buffers: Arrays = {}
    self._done = False
    self.priorities: dict[int, np.ndarray] = {}
    self.number = 0
    self.written = 0

  @property
  def names(self) -> set[str]:
    """The files of the manifest, as far as they have names yet."""
    return {record.name for record in self._records if record.name}

  def write(self) -> dict[str, Any]:
    """Writes what is not on disk yet; on any thread, once.

    Returns:
      The manifest: a JSON-able dict that names every file and holds
      everything else, from which `Replay.load` restores the snapshot.

    Raises:
      OSError: If a file cannot be written (disk full, read-only folder).
      ReplayCorrupt: If a file of an earlier save has gone.
      RuntimeError: If it was written or discarded before.

    After an error the replay counts the rows as unwritten, so that the next
    snapshot contains them.
    """
    if self._done:
      raise RuntimeError('this replay snapshot was written or discarded')
    try:
      self._write_files()
    except BaseException:
      self.discard()
      raise
    self._done = True
    self._plans = []
    self._buffers = {}
    self._journal.finish(self.names)
    return self._state | {'files': [x.to_json() for x in self._records]}

  def discard(self) -> None:
    """Gives the snapshot up: its rows are left to the next one."""
    if self._done:
      return
    self._done = True
    with self._journal.lock:
      self._journal.ledger.undo(self._plans)
    self._journal.finish(None)

  def _write_files(self) -> None:
    shard = self._journal.shard
    folder = self._directory / files.shard_folder(shard)
    folder.mkdir(parents=True, exist_ok=True)
    listing = files.listing(self._directory, shard)
    self._check_earlier(
      {name for name, _, temporary in listing if not temporary}
    )
    generation = self._journal.generation(number for _, number, _ in listing)
    for plan in self._plans:
      record = plan.record
      # Named before it is there, so that a prune meanwhile leaves it alone.
      record.name = files.file_name(
        shard, record.kind, generation, record.index
      )
      arrays = self._collect(plan)
      path = self._directory / record.name
      record.bytes, record.crc = files.write_file(path, arrays)
      self.written += record.bytes
    if self.priorities:
      self._write_priorities(generation)
    files.sync_folder(folder)

  def _write_priorities(self, generation: int) -> None:
    serials = np.array(list(self.priorities), np.int64)
    stops = np.array([len(x) for x in self.priorities.values()], np.int64)
    runs = np.stack([serials, np.zeros_like(serials), stops], 1)
    values = np.concatenate(list(self.priorities.values()))
    record = Record(self.number, PRIORITIES, len(values), 0)
    record.name = files.file_name(
      self._journal.shard, PRIORITIES, generation, self.number
    )
    path = self._directory / record.name
    self._records.append(record)
    record.bytes, record.crc = files.write_file(path, [runs, values])
    self.written += record.bytes

  def _check_earlier(self, existing: set[str]) -> None:
    missing = sorted(self.names - existing)
    if missing:
      self._journal.lose(missing)
      raise files.ReplayCorrupt(
        f'replay file {self._directory / missing[0]} of an earlier save has '
        f'gone ({len(missing)} in all); the next save writes it again'
      )

  def _collect(self, plan: Plan) -> list[np.ndarray]:
    """Copies the rows of a file as they were at the snapshot."""
    fields = self._journal.fields
    keys = latent_keys(fields) if plan.record.kind == LATENTS else list(fields)
    out = {key: self._buffer(key, plan.record.rows) for key in keys}
    start = 0
    for part in plan.parts:
      stop = start + len(part[1])
      window = {key: array[start:stop] for key, array in out.items()}
      _copy(part, window, self._journal.lock)
      start = stop
    runs = np.concatenate([_runs(*part) for part in plan.parts])
    return [runs, *out.values()]

  def _buffer(self, key: str, rows: int) -> np.ndarray:
    """Returns memory for rows, the same for every file."""
    if rows > len(self._buffers.get(key, ())):
      field = self._journal.fields[key]
      self._buffers[key] = np.empty((rows, *field.shape), field.stored)
    return self._buffers[key][:rows]


def _copy(part: Part, out: Arrays, lock: threading.Lock) -> None:
  """Copies rows of a chunk, in the form they had at the snapshot."""
  chunk, rows = part
  pending = chunk.pending
  for key, array in out.items():
    np.take(chunk.arrays[key], rows, axis=0, out=array, mode='clip')
  # Rows that changed before or during this copy were set aside.
  with lock:
    if pending is not None:
      pending.finish(rows, out)
      if not pending.waiting.any():
        chunk.pending = None


def _runs(chunk: Chunk, rows: np.ndarray) -> np.ndarray:
  """Returns the runs of rising rows, int64 [r, 3]: serial, start, stop."""
  cuts = np.flatnonzero(np.diff(rows) != 1) + 1
  starts = rows[np.concatenate([[0], cuts])]
  stops = rows[np.concatenate([cuts - 1, [len(rows) - 1]])] + 1
  serials = np.full(len(starts), chunk.serial)
  return np.stack([serials, starts, stops], 1).astype(np.int64)
