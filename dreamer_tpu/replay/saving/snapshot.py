"""Saves in two phases: freeze in memory, then write in the background."""

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
  Record,
)

_INTACT, _COPIED = 1, 2


class FrozenRows:
  """Latents of a chunk's rows as of a snapshot, until they are written."""

  def __init__(self, rows: int) -> None:
    self._state = np.zeros(rows, np.uint8)
    self._copies: list[tuple[np.ndarray, Arrays]] = []

  def freeze(self, start: int, stop: int) -> None:
    """Adds rows as they are now."""
    self._state[start:stop] = _INTACT

  def copy(self, latents: Arrays, start: int, stop: int) -> None:
    """Copies the frozen rows among start..stop before they are overwritten."""
    rows = start + np.flatnonzero(self._state[start:stop] == _INTACT)
    if rows.size:
      old = {key: array[rows] for key, array in latents.items()}
      self._copies.append((rows, old))
      self._state[rows] = _COPIED

  def release(self, start: int, stop: int, out: Arrays) -> bool:
    """Puts copied values into `out`, which holds rows start..stop.

    Returns:
      Whether no frozen rows are left.
    """
    for rows, old in self._copies:
      inside = (rows >= start) & (rows < stop)
      for key, values in old.items():
        out[key][rows[inside] - start] = values[inside]
    self._state[start:stop] = 0
    return not self._state.any()

  @property
  def nbytes(self) -> int:
    """Bytes of the copies."""
    arrays = [array for _, old in self._copies for array in old.values()]
    return sum(array.nbytes for array in arrays)


class ShardSaver:
  """Saves a replay shard incrementally.

  Attributes:
    shard: Number of the shard.
    fields: Fields of a step.
    lock: The replay's lock. Guards chunks, ledger and frozen rows.
    ledger: Files on disk.
    generation: Number that distinguishes file names of this run, 0 before the
      first save. A killed run may leave files that it never committed; their
      names must not be used again.
    current: The snapshot in progress.
    names: Files in the newest manifest.
  """

  def __init__(
    self, shard: int, fields: dict[str, Field], lock: threading.Lock
  ) -> None:
    self.shard = shard
    self.fields = fields
    self.lock = lock
    self.current: Snapshot | None = None
    self.names: set[str] = set()
    self.reset()

  def reset(self, directory: epath.PathLike = '') -> None:
    """Starts without files, to save into `directory`."""
    self._directory = epath.Path(directory)
    self.generation = 0
    self.ledger = Ledger(
      sum(field.nbytes for field in self.fields.values()),
      sum(self.fields[key].nbytes for key in latent_keys(self.fields)),
    )

  def snapshot(
    self,
    directory: epath.PathLike,
    state: dict[str, Any],
    chunks: Mapping[int, Chunk],
    priorities: dict[int, np.ndarray],
  ) -> 'Snapshot':
    """Freezes the shard. The caller holds the lock.

    Args:
      directory: The replay directory.
      state: The manifest without its files.
      chunks: Chunks by serial.
      priorities: Priorities of the steps of each chunk, by serial.

    Raises:
      RuntimeError: The previous snapshot is still being written.
    """
    if self.current is not None:
      raise RuntimeError('the previous replay snapshot is still being written')
    if epath.Path(directory) != self._directory:
      self.reset(directory)
    self.current = Snapshot(
      self, self._directory, state, dict(chunks), priorities
    )
    return self.current

  def before_overwrite(self, chunk: Chunk, start: int, stop: int) -> None:
    """Preserves latents for the snapshot in progress."""
    if self.current is not None:
      self.current.preserve(chunk, start, stop)

  @property
  def copied_bytes(self) -> int:
    """Bytes of the latents copied for the snapshot in progress."""
    return self.current.copied_bytes if self.current is not None else 0

  def prune(
    self, directory: epath.PathLike, manifests: Iterable[Mapping[str, Any]]
  ) -> list[str]:
    """Deletes unneeded files of this shard; see `Replay.prune`."""
    # List first, so that files written in the meantime are not deleted.
    listing = files.list_files(directory, self.shard)
    with self.lock:
      keep = files.named(manifests) | self.names
      keep |= {record.name for record in self.ledger.files.values()}
      if self.current is not None:
        keep |= self.current.names
    return files.delete_except(directory, listing, keep)


class Snapshot:
  """State of a replay at one moment; made by `Replay.snapshot`.

  Steps never change after insertion, so a snapshot only records how many rows
  of each chunk are in use. Latents do change: their old values are copied when
  they are overwritten before they have been written (`FrozenRows`).

  Attributes:
    planned_bytes: Bytes of steps and latents that `write` writes.
    written: Bytes written by `write`.
  """

  def __init__(
    self,
    saver: ShardSaver,
    directory: epath.Path,
    state: dict[str, Any],
    chunks: dict[int, Chunk],
    priorities: dict[int, np.ndarray],
  ) -> None:
    """Plans the files; see `ShardSaver.snapshot` for the arguments."""
    self._saver = saver
    self._ledger = saver.ledger
    self._directory = directory
    self._state = state
    self._chunks = chunks
    self._priorities = priorities
    self._done = False
    self.written = 0
    self._kept, self._new = self._ledger.plan(chunks)
    self.planned_bytes = sum(map(self._ledger.size, self._new))
    self._frozen: dict[int, FrozenRows] = {}
    for file in self._new:
      for serial, start, stop in file.runs.tolist():
        if serial not in self._frozen:
          self._frozen[serial] = FrozenRows(len(chunks[serial].dirty))
        self._frozen[serial].freeze(start, stop)
    self._records = [*self._kept, *self._new]
    if priorities:
      runs = [(serial, 0, len(x)) for serial, x in priorities.items()]
      self._records.append(
        self._ledger.new_file(PRIORITIES, np.array(runs, np.int64))
      )

  @property
  def names(self) -> set[str]:
    """Files of the manifest that have names already."""
    return {record.name for record in self._records if record.name}

  @property
  def copied_bytes(self) -> int:
    """Bytes of the latents that `preserve` copied and `write` still needs."""
    return sum(rows.nbytes for rows in self._frozen.values())

  def preserve(self, chunk: Chunk, start: int, stop: int) -> None:
    """Copies latents that are about to be overwritten, if still needed."""
    frozen = self._frozen.get(chunk.serial)
    if frozen is not None and self._chunks[chunk.serial] is chunk:
      frozen.copy(chunk.latents, start, stop)

  def write(self) -> dict[str, Any]:
    """Writes everything that is not on disk yet. Any thread may call this.

    After an error, the next snapshot writes the rows of this one.

    Returns:
      The manifest, a dict of JSON values from which `Replay.load` restores the
      snapshot.

    Raises:
      OSError: A file cannot be written (disk full, read-only folder).
      ReplayCorrupt: A file of an earlier save has disappeared.
      RuntimeError: The snapshot was written or discarded before.
    """
    if self._done:
      raise RuntimeError('this replay snapshot was written or discarded')
    try:
      self._write_files()
    except BaseException:
      self.discard()
      raise
    with self._saver.lock:
      self._ledger.commit(self._kept, self._new)
      self._saver.names = self.names
      self._finish()
    return self._state | {'files': [x.to_json() for x in self._records]}

  def discard(self) -> None:
    """Abandons the snapshot; the next one writes its rows."""
    with self._saver.lock:
      if not self._done:
        self._ledger.undo(self._new, self._chunks)
        self._finish()

  def _finish(self) -> None:
    self._done = True
    self._chunks.clear()
    self._priorities.clear()
    self._frozen.clear()
    self._saver.current = None

  def _write_files(self) -> None:
    saver = self._saver
    folder = self._directory / files.shard_folder(saver.shard)
    folder.mkdir(parents=True, exist_ok=True)
    listing = files.list_files(self._directory, saver.shard)
    self._check_kept(
      {name for name, _, unfinished in listing if not unfinished}
    )
    if not saver.generation:
      saver.generation = 1 + max((x for _, x, _ in listing), default=0)
    for record in self._records[len(self._kept) :]:
      # Named before it exists, so that a concurrent `prune` keeps it.
      record.name = files.file_name(
        saver.shard, record.kind, saver.generation, record.index
      )
      record.bytes, record.crc = files.write_file(
        self._directory / record.name, [record.runs, *self._collect(record)]
      )
      self.written += record.bytes
    files.sync_folder(folder)

  def _check_kept(self, existing: set[str]) -> None:
    missing = sorted(self.names - existing)
    if not missing:
      return
    with self._saver.lock:
      for name in missing:
        self._ledger.mark_lost(name, self._chunks)
    raise files.ReplayCorrupt(
      f'replay file {self._directory / missing[0]} of an earlier save is '
      f'missing ({len(missing)} in all); the next save writes it again'
    )

  def _collect(self, record: Record) -> list[np.ndarray]:
    """Returns the arrays of a file as of the snapshot."""
    if record.kind == PRIORITIES:
      return [np.concatenate([*self._priorities.values()])]
    fields = self._saver.fields
    keys = latent_keys(fields) if record.kind == LATENTS else list(fields)
    out = {
      key: np.empty((record.rows, *fields[key].shape), fields[key].stored)
      for key in keys
    }
    row = 0
    for serial, start, stop in record.runs.tolist():
      window = {key: x[row : row + stop - start] for key, x in out.items()}
      for key, array in window.items():
        array[:] = self._chunks[serial].arrays[key][start:stop]
      # Rows overwritten before or during this copy are in the frozen copies.
      with self._saver.lock:
        if self._frozen[serial].release(start, stop, window):
          del self._frozen[serial]
      row += stop - start
    return list(out.values())
