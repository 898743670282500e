"""The replay buffer of one host: steps in, sequences out.

Every environment is a stream of consecutive steps. A stream is stored in
chunks of a fixed number of steps; chunks are numbered in the order in which
they are opened, and the address of a step is

  stepid = serial of its chunk * chunksize + row in the chunk     (int64)

which is never used twice within a shard. Sequences may cross chunks and
episodes, never streams. When the capacity is exceeded, the oldest chunk is
dropped as a whole, with the sequences that start in it.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.errors import UserError
from dreamer_tpu.replay.chunks import latent_keys, parse_spec
from dreamer_tpu.replay.sampling.mixture import Sampling
from dreamer_tpu.replay.saving import restore
from dreamer_tpu.replay.saving.snapshot import Journal, Snapshot
from dreamer_tpu.replay.store import Store

# Besides the arrays a row takes one byte of `dirty` and four of `source`.
_ROW_OVERHEAD = 5


class Replay:
  """One shard of the replay. Its methods may be called from any thread.

  The same seed and the same calls give the same samples.
  """

  def __init__(
    self,
    spec: Mapping[str, tuple[tuple[int, ...], Any]],
    *,
    length: int,
    capacity: int,
    chunksize: int,
    online: bool,
    streams: int,
    seed: int,
    shard: int = 0,
    sampling: Sampling | None = None,
  ) -> None:
    """Makes an empty replay.

    Args:
      spec: Shape and dtype per step of every key, among them bool 'is_first'
        and 'is_last'. Keys 'latent/NAME' may be overwritten with `update`.
      length: Steps per sequence.
      capacity: Most steps to hold.
      chunksize: Steps per chunk. Smaller chunks are used if so large ones
        would leave a stream without a sequence when the oldest is dropped.
      online: Whether every new sequence is sampled once as soon as possible.
      streams: Environments, rows of `add`.
      seed: Seed of sampling.
      shard: Which of the hosts' shards this is.
      sampling: How sequences are chosen; uniformly by default.

    Raises:
      UserError: If the capacity does not hold one sequence per stream.
    """
    share = capacity // streams
    if share < length:
      raise UserError(
        f'replay.size {capacity} is too small for {streams} environments and '
        f'sequences of {length} steps; it must be at least {streams * length}'
      )
    self.length = length
    self._width = streams
    self._seed = seed
    self._fields = parse_spec(spec)
    self._latents = latent_keys(self._fields)
    self._chunksize = min(chunksize, max(1, (share - length) // 2))
    self._store = Store(
      self._fields,
      length=length,
      capacity=capacity,
      chunksize=self._chunksize,
      width=streams,
      online=online,
      sampling=sampling or Sampling(),
      on_evict=lambda chunk: self._journal.ledger.evict(chunk),
    )
    self._lock = threading.Lock()
    self._journal = Journal(shard, self._fields, self._store.chunks, self._lock)
    self._rng = np.random.Generator(np.random.PCG64(seed))
    self._inserts = self._samples = 0  # Since the last `stats`.

  def __len__(self) -> int:
    """Number of sequence starts that can be sampled."""
    return len(self._store)

  def add(self, step: Mapping[str, np.ndarray]) -> None:
    """Stores one step of every stream; copies it.

    Args:
      step: Arrays [streams, ...] with the keys, shapes and dtypes of the spec.

    Raises:
      ValueError: If they differ from the spec.
    """
    if step.keys() != self._fields.keys():
      names = sorted(step.keys() ^ self._fields.keys())
      raise ValueError(f'step and replay spec differ in the keys {names}')
    stored = {
      key: self._to_stored(key, step[key], (self._width,))
      for key in self._fields
    }
    with self._lock:
      self._store.add(stored)
      self._inserts += self._width

  def sample(
    self,
    batch: int,
    steps: int | None = None,
    *,
    online: bool = True,
    rng: np.random.Generator | None = None,
  ) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Draws sequences: first what the online queue holds, then by selector.

    Args:
      batch: Number of sequences.
      steps: Return only so many first steps of each; all when None.
      online: Whether to draw from the online queue, if there is one.
      rng: Generator to draw with; the replay's own when None.

    Returns:
      New arrays [batch, steps, ...] by key, and the addresses of the steps,
      int64 [batch, steps]. The first step of a sequence has is_first set;
      a step followed by an is_first in its sequence has is_last set, also
      where its episode was given up half-way (as at a restart).

    Raises:
      ValueError: If there is no sequence yet.
    """
    with self._lock:
      starts = self._store.draw(batch, online, rng or self._rng, rng is None)
      if rng is None:  # A report does not count as training.
        self._samples += batch
      return self._store.gather(starts, 0, steps or self.length)

  def gather(
    self, starts: np.ndarray, offset: int, steps: int
  ) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
    """Returns a later part of sequences that were sampled before.

    Args:
      starts: Addresses of the sequences' first steps, int64 [batch].
      offset: Steps to skip in each.
      steps: Steps to return; offset + steps <= length.

    Returns:
      As `sample`, or None if one of the starts has been dropped meanwhile.
    """
    with self._lock:
      if not self._store.holds(starts):
        return None
      return self._store.gather(starts, offset, steps)

  def update(
    self, stepid: np.ndarray, values: Mapping[str, np.ndarray]
  ) -> None:
    """Overwrites latents; ignores steps that have been dropped meanwhile.

    Args:
      stepid: Addresses, int64 of any shape.
      values: Arrays [*stepid.shape, ...] by 'latent/' key. Of an address that
        occurs twice the last value stays.

    Raises:
      ValueError: If a key is no latent, or a shape or dtype differs.
    """
    ids = np.asarray(stepid)
    stored = {}
    for key, value in values.items():
      if key not in self._latents:
        raise ValueError(f'{key!r} is not among the latents {self._latents}')
      field = self._fields[key]
      rows = self._to_stored(key, value, ids.shape)
      stored[key] = rows.reshape(-1, *field.shape)
    if ids.size and stored:
      with self._lock:
        self._store.overwrite(ids.reshape(-1), stored)

  def prioritize(self, stepid: np.ndarray, priority: np.ndarray) -> None:
    """Sets priorities; ignores steps that have been dropped meanwhile.

    Args:
      stepid: Addresses, int64 of any shape.
      priority: The same shape, at least 0; only their relation counts. Those
        that are not finite count as 0.

    Raises:
      ValueError: If the shapes differ.
    """
    ids, values = np.asarray(stepid), np.asarray(priority, np.float32)
    if ids.shape != values.shape:
      raise ValueError(f'{values.shape} priorities for {ids.shape} steps')
    values = np.where(np.isfinite(values), np.maximum(values, 0), 0)
    with self._lock:
      if self._store.prioritized is not None and ids.size:
        flat = values.astype(np.float32).reshape(-1)
        self._store.prioritized.prioritize(ids.reshape(-1), flat)

  def stats(self) -> dict[str, float]:
    """Returns figures for the log; inserts and samples since the last call.

    Returns:
      items: Sequence starts that can be sampled.
      steps: Steps stored.
      ram_gb: Memory that they take, in 1e9 bytes.
      inserts, samples: Steps added, sequences sampled without `rng`.
      replay_ratio: Steps sampled per step added.
    """
    row = sum(field.nbytes for field in self._fields.values())
    with self._lock:
      inserts, samples = self._inserts, self._samples
      self._inserts = self._samples = 0
      kept = sum(
        chunk.pending.nbytes
        for chunk in self._store.chunks.values()
        if chunk.pending is not None
      )
      steps = self._store.steps
      return {
        'items': float(len(self._store)),
        'steps': float(steps),
        'ram_gb': (steps * (row + _ROW_OVERHEAD) + kept) / 1e9,
        'inserts': float(inserts),
        'samples': float(samples),
        'replay_ratio': samples * self.length / inserts if inserts else 0.0,
      }

  def snapshot(self, directory: epath.PathLike) -> Snapshot:
    """Freezes the current state to be written under `directory`.

    Copies no steps and touches no disk: some 20 microseconds per chunk that
    has changed. Then `Snapshot.write()`, on any thread, returns the manifest.
    One snapshot at a time; `Snapshot.discard()` gives one up.

    Args:
      directory: The replay directory, shared by all shards; files go to
        directory/SHARD/. Into another directory than before everything is
        written, else only what is new or changed.

    Raises:
      RuntimeError: If the previous snapshot is not written yet.
    """
    with self._lock:
      prioritized = self._store.prioritized
      priorities = prioritized.priorities() if prioritized else {}
      return self._journal.snapshot(directory, self._state(), priorities)

  def save(self, directory: epath.PathLike) -> dict[str, Any]:
    """Saves and returns the manifest; see `snapshot`."""
    return self.snapshot(directory).write()

  def prune(
    self, directory: epath.PathLike, manifests: Sequence[Mapping[str, Any]]
  ) -> list[str]:
    """Deletes files of this shard that nothing needs any more.

    Kept are those that a manifest in `manifests` names, those of the snapshot
    under way, of the newest manifest (it may not be committed yet), and those
    on which the next snapshot will build.

    Args:
      directory: The replay directory.
      manifests: All that have to stay restorable, of every shard.

    Returns:
      Names of the deleted files, relative to the directory.
    """
    return self._journal.prune(directory, manifests)

  def load(
    self,
    directory: epath.PathLike,
    manifests: Sequence[Mapping[str, Any]],
    count: int | None = None,
  ) -> bool:
    """Replaces the contents by saved ones.

    With as many shards as were saved, each restores its own exactly as it
    was, sampling included. If the number of environments has changed, the old
    streams stay and new ones begin. With another number of shards, whole
    streams are dealt out. Then, as with another chunk size, steps get new
    addresses and the next save writes everything once.

    Args:
      directory: The replay directory.
      manifests: Those of all shards of one checkpoint, in any order.
      count: Number of shards now; as many as manifests when None.

    Returns:
      Whether steps have the addresses that they had.

    Raises:
      UserError: If the steps have other keys, shapes or dtypes; nothing has
        changed then.
      ReplayCorrupt: If a file is missing or damaged; the replay is empty then.
    """
    manifests = sorted(manifests, key=lambda manifest: manifest['shard'])
    for manifest in manifests:
      restore.check(manifest, self._fields)
    with self._lock:
      self._clear()
      try:
        return self._restore(directory, manifests, count or len(manifests))
      except BaseException:
        self._clear()
        raise

  def _clear(self) -> None:
    self._store.clear()
    self._journal.forget()
    self._rng = np.random.Generator(np.random.PCG64(self._seed))
    self._inserts = self._samples = 0

  def _restore(
    self,
    directory: epath.PathLike,
    manifests: Sequence[Mapping[str, Any]],
    count: int,
  ) -> bool:
    layout = restore.lay_out(
      manifests, self._journal.shard, count, self._chunksize, self._fields
    )
    self._store.take_chunks(layout)
    layout.read(directory, self._store.chunks, self._journal.ledger)
    self._store.index(layout)
    if self._store.prioritized is not None:
      for address, values in layout.priorities(directory):
        rows = np.arange(len(values))
        self._store.prioritized.prioritize(address + rows, values)
    if layout.own is None:
      seed = np.random.SeedSequence([self._seed, self._store.inserted])
      self._rng = np.random.Generator(np.random.PCG64(seed))
    else:
      self._journal.adopt(directory)
      self._rng.bit_generator.state = restore.decode_rng(layout.own['rng'])
      self._inserts, self._samples = layout.own['counts']
    return layout.own is not None

  def _state(self) -> dict[str, Any]:
    """Returns the manifest, but for its files."""
    return self._store.state() | {
      'format': restore.FORMAT,
      'shard': self._journal.shard,
      'spec': {
        key: [field.dtype.name, list(field.shape)]
        for key, field in self._fields.items()
      },
      'counts': [self._inserts, self._samples],
      'rng': restore.encode_rng(self._rng.bit_generator.state),
    }

  def _to_stored(
    self, key: str, value: np.ndarray, lead: tuple[int, ...]
  ) -> np.ndarray:
    value, field = np.asarray(value), self._fields[key]
    if value.shape != lead + field.shape or value.dtype != field.dtype:
      raise ValueError(
        f'{key!r} is {value.dtype.name} {list(value.shape)}, the replay '
        f'takes {field.dtype.name} {[*lead, *field.shape]}'
      )
    return value if field.stored == field.dtype else value.view(field.stored)
