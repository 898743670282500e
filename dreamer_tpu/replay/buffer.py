"""The replay buffer of one host.

Each environment is a stream of consecutive steps. Streams are stored in chunks
of a fixed number of steps. Chunks are numbered in the order in which they are
opened, and the address of a step is

  stepid = serial of its chunk * chunksize + row in the chunk     (int64)

which is unique within a shard. Sequences may cross chunks and episodes but not
streams. When the capacity is exceeded, the oldest chunk is dropped, with all
sequences that start in it. Imported streams can be excepted.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.errors import UserError
from dreamer_tpu.replay.chunks import latent_keys, parse_spec, to_stored
from dreamer_tpu.replay.rng import make_rng, rng_state, set_rng_state
from dreamer_tpu.replay.sampling import Sampling
from dreamer_tpu.replay.saving import loading
from dreamer_tpu.replay.saving.snapshot import ShardSaver, Snapshot
from dreamer_tpu.replay.store import Store

# Bytes of a step besides its arrays: one of `dirty`, four in the ledger.
_STEP = 5
# Bytes of the same for each array of a chunk, which is an object.
_ARRAY = 300
# Bytes of a step in the selectors.
_PRIORITY = 8
_RECENCY = 32


def step_bytes(
  spec: Mapping[str, tuple[tuple[int, ...], Any]],
  chunksize: int,
  sampling: Sampling,
) -> float:
  """Returns the memory of a stored step, in bytes; see `Replay`."""
  fields = parse_spec(spec)
  arrays = sum(field.nbytes for field in fields.values())
  selectors = bool(sampling.priority) * _PRIORITY
  selectors += bool(sampling.recency) * _RECENCY
  return arrays + _STEP + selectors + _ARRAY * len(fields) / chunksize


class Replay:
  """One shard of the replay. Thread-safe.

  Samples are a deterministic function of the seed and the calls.
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
    keep_imported: float = 0.0,
  ) -> None:
    """Makes an empty replay.

    Args:
      spec: Shape and dtype per step of every key, including bool 'is_first'
        and 'is_last'. Keys 'latent/NAME' may be overwritten with `update`.
      length: Steps per sequence.
      capacity: Maximum number of steps.
      chunksize: Steps per chunk. Reduced if dropping such a chunk could leave
        a stream without a sequence.
      online: Whether every new sequence is sampled once, as soon as possible.
      streams: Number of environments, the rows of `add`.
      seed: Random seed of sampling.
      shard: Number of this shard, one per host.
      sampling: Distribution over sequences; uniform by default.
      keep_imported: Share of each sample that is drawn from imported steps (see
        `ImportWriter`), which then are never dropped. With 0, they are like
        all others. As long as one kind has no sequence, the other has all.

    Raises:
      UserError: The capacity does not hold one sequence per stream.
    """
    share = capacity // streams
    if share < length:
      raise UserError(
        f'replay.size {capacity} is too small for {streams} environments and '
        f'sequences of {length} steps; it must be at least {streams * length}'
      )
    self.length = length
    self._width = streams
    self._capacity = capacity
    self._keep_imported = keep_imported
    self._seed = seed
    self._fields = parse_spec(spec)
    self._latents = latent_keys(self._fields)
    self._max_chunksize = chunksize
    self._chunksize = min(chunksize, max(1, (share - length) // 2))
    self._lock = threading.Lock()
    self._saver = ShardSaver(shard, self._fields, self._lock)
    self._store = Store(
      self._fields,
      length=length,
      capacity=capacity,
      chunksize=self._chunksize,
      width=streams,
      online=online,
      sampling=sampling or Sampling(),
      keep_imported=keep_imported,
      before_overwrite=self._saver.before_overwrite,
    )
    self._rng = make_rng(seed)
    self._step_bytes = step_bytes(spec, self._chunksize, sampling or Sampling())
    self._inserts = self._samples = 0  # Since the last `stats`.

  def __len__(self) -> int:
    """Returns the number of sequences that can be sampled."""
    return len(self._store)

  def add(self, step: Mapping[str, np.ndarray]) -> None:
    """Copies one step of every stream into the replay.

    Args:
      step: Arrays [streams, ...] with the keys, shapes and dtypes of the spec.

    Raises:
      ValueError: The step does not match the spec.
    """
    stored = to_stored(step, self._fields, (self._width,))
    with self._lock:
      self._store.add(stored)
      self._inserts += self._width

  def extend(self, steps: Mapping[str, np.ndarray]) -> None:
    """Copies consecutive steps of every stream, as K calls of `add` would.

    Args:
      steps: Arrays [K, streams, ...] with the keys, shapes and dtypes of the
        spec.

    Raises:
      ValueError: The steps do not match the spec.
    """
    count = len(steps.get('is_first', ()))
    stored = to_stored(steps, self._fields, (count, self._width))
    by_stream = {key: value.swapaxes(0, 1) for key, value in stored.items()}
    with self._lock:
      self._store.extend(by_stream)
      self._inserts += count * self._width

  def sample(
    self,
    batch: int,
    steps: int | None = None,
    *,
    online: bool = True,
    rng: np.random.Generator | None = None,
  ) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Samples sequences, first from the online queue, then by the selector.

    Args:
      batch: Number of sequences.
      steps: Number of leading steps to return; all by default.
      online: Whether to draw from the online queue, if there is one.
      rng: Generator to draw with; the replay's own by default.

    Returns:
      New arrays [batch, steps, ...] by key, and the addresses of the steps,
      int64 [batch, steps]. The first step of a sequence has is_first set. A
      step followed by an is_first has is_last set, even if its episode was
      abandoned (as at a restart).

    Raises:
      ValueError: There is no sequence yet.
    """
    with self._lock:
      # Draws with another generator, as for reports, are not training.
      training = rng is None
      starts = self._store.draw(batch, online, rng or self._rng, training)
      self._samples += batch * training
      return self._store.gather(starts, 0, steps or self.length)

  def gather(
    self, starts: np.ndarray, offset: int, steps: int
  ) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
    """Returns a later part of sequences that were sampled before.

    Args:
      starts: Addresses of the sequences' first steps, int64 [batch].
      offset: Steps to skip in each sequence.
      steps: Steps to return; offset + steps <= length.

    Returns:
      As `sample`, or None if one of the starts is no longer stored.
    """
    with self._lock:
      if not self._store.holds(starts):
        return None
      return self._store.gather(starts, offset, steps)

  def update(
    self, stepid: np.ndarray, values: Mapping[str, np.ndarray]
  ) -> None:
    """Overwrites latents. Ignores steps that are no longer stored.

    Args:
      stepid: Addresses, int64 of any shape.
      values: Arrays [*stepid.shape, ...] by 'latent/' key. If an address
        occurs twice, the last value counts.

    Raises:
      ValueError: A key is not a latent, or a shape or dtype differs.
    """
    ids = np.asarray(stepid)
    stored = {}
    for key, value in values.items():
      if key not in self._latents:
        raise ValueError(f'{key!r} is not among the latents {self._latents}')
      field = self._fields[key]
      rows = field.to_stored(key, value, ids.shape)
      stored[key] = rows.reshape(-1, *field.shape)
    if ids.size and stored:
      with self._lock:
        self._store.overwrite(ids.reshape(-1), stored)

  def prioritize(self, stepid: np.ndarray, priority: np.ndarray) -> None:
    """Sets priorities. Ignores steps that are no longer stored.

    Args:
      stepid: Addresses, int64 of any shape.
      priority: Non-negative array of equal shape; only ratios matter. Values
        that are not finite count as 0.

    Raises:
      ValueError: The shapes differ.
    """
    ids, values = np.asarray(stepid), np.asarray(priority, np.float32)
    if ids.shape != values.shape:
      raise ValueError(f'{values.shape} priorities for {ids.shape} steps')
    values = np.where(np.isfinite(values), np.maximum(values, 0), 0)
    if ids.size:
      with self._lock:
        self._store.prioritize(
          ids.reshape(-1), values.astype(np.float32).reshape(-1)
        )

  def stats(self) -> dict[str, float]:
    """Returns metrics.

    Returns:
      items: Sequences that can be sampled.
      steps: Steps stored.
      imported: Those of them that were imported.
      fill: Share of the capacity in use.
      ram_gb: Memory in 1e9 bytes.
      inserts, samples: Steps added and sequences sampled for training since
        the last call.
      replay_ratio: Steps sampled per step added since the last call.
    """
    with self._lock:
      inserts, samples = self._inserts, self._samples
      self._inserts = self._samples = 0
      steps = self._store.steps
      size = steps * self._step_bytes + self._saver.copied_bytes
      return {
        'items': float(len(self)),
        'steps': float(steps),
        'imported': float(self._store.imported),
        'fill': steps / self._capacity,
        'ram_gb': size / 1e9,
        'inserts': float(inserts),
        'samples': float(samples),
        'replay_ratio': samples * self.length / inserts if inserts else 0.0,
      }

  def snapshot(self, directory: epath.PathLike) -> Snapshot:
    """Freezes the current state, to be written under `directory`.

    Copies no steps and touches no disk. `Snapshot.write()`, on any thread,
    writes it and returns the manifest. Only one snapshot may be in progress;
    `Snapshot.discard()` abandons it.

    Args:
      directory: The replay directory, shared by all shards. Files go to
        directory/SHARD/. A new directory gets everything, the previous one
        only what is new or has changed.

    Raises:
      RuntimeError: The previous snapshot is still being written.
    """
    with self._lock:
      return self._saver.snapshot(
        directory,
        self._state(),
        self._store.chunks,
        self._store.priorities(),
      )

  def prune(
    self, directory: epath.PathLike, manifests: Sequence[Mapping[str, Any]]
  ) -> list[str]:
    """Deletes files of this shard that are no longer needed.

    Keeps the files named by `manifests`, by the newest manifest (which may not
    be committed yet) and by the snapshot in progress, and those that the next
    snapshot will reuse.

    Args:
      directory: The replay directory.
      manifests: Manifests of all shards that must stay restorable.

    Returns:
      Names of the deleted files, relative to the directory.
    """
    return self._saver.prune(directory, manifests)

  def load(
    self,
    directory: epath.PathLike,
    manifests: Sequence[Mapping[str, Any]],
    count: int | None = None,
  ) -> bool:
    """Replaces the contents by saved ones.

    If the number of shards is unchanged, each shard restores its own state
    exactly, including sampling. If the number of environments changed, the old
    streams stay and new ones begin. If the number of shards changed, whole
    streams are distributed over the shards, and imported steps in equal parts.
    In that case, and if the chunk size changed, steps get new addresses and the
    next save writes everything.

    Args:
      directory: The replay directory.
      manifests: Manifests of all shards of one checkpoint, in any order.
      count: Number of shards now; as many as manifests by default.

    Returns:
      Whether steps kept their addresses.

    Raises:
      UserError: Keys, shapes or dtypes differ, or the imported steps to keep
        leave no room for others; the replay is unchanged.
      ReplayCorrupt: A file is missing or corrupt; the replay is empty.
    """
    manifests = sorted(manifests, key=lambda manifest: manifest['shard'])
    for manifest in manifests:
      loading.check_spec(manifest, self._fields)
    count = count or len(manifests)
    if self._keep_imported:
      self._check_room(loading.most_imported(manifests, count), count)
    with self._lock:
      self._clear()
      try:
        return self._load(directory, manifests, count)
      except BaseException:
        self._clear()
        raise

  def _clear(self) -> None:
    self._store.clear()
    self._saver.reset()
    self._rng = make_rng(self._seed)
    self._inserts = self._samples = 0

  def _load(
    self,
    directory: epath.PathLike,
    manifests: Sequence[Mapping[str, Any]],
    count: int,
  ) -> bool:
    layout = loading.plan_layout(
      manifests,
      self._saver.shard,
      count,
      self._capacity,
      self._chunksize,
      self._fields,
      keep_imported=self._keep_imported > 0,
    )
    self._saver.reset(directory)
    layout.read(directory, self._saver.ledger)
    self._store.load(layout)
    for address, values in layout.priorities(directory):
      self._store.prioritize(address + np.arange(len(values)), values)
    if layout.exact is None:
      seed = np.random.SeedSequence([self._seed, self._store.inserted])
      self._rng = make_rng(seed)
      return False
    set_rng_state(self._rng, layout.exact['rng'])
    self._inserts, self._samples = layout.exact['counts']
    return True

  def _check_room(self, kept: int, count: int) -> None:
    """Raises a UserError if steps to keep leave too little for the streams."""
    needed = kept + self._width * (self.length + 2 * self._chunksize)
    if kept and needed > self._capacity:
      most = kept + self._width * (self.length + 2 * self._max_chunksize)
      raise UserError(
        f'replay.size {self._capacity * count} is too small to keep the '
        f'imported steps (replay.keep_imported={self._keep_imported:g}) beside '
        f'those of {self._width} environments; use --config.replay.size='
        f'{most * count}, or replay.keep_imported=0'
      )

  def _state(self) -> dict[str, Any]:
    """Returns the manifest without its files."""
    return self._store.state() | {
      'format': loading.FORMAT,
      'shard': self._saver.shard,
      'spec': loading.spec_to_json(self._fields),
      'counts': [self._inserts, self._samples],
      'rng': rng_state(self._rng),
    }
