"""Reading a saved replay back, also into another number of shards."""

import collections
import concurrent.futures
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from dreamer_tpu.errors import UserError
from dreamer_tpu.replay.chunks import Chunk, Field, latent_keys
from dreamer_tpu.replay.saving import files
from dreamer_tpu.replay.saving.ledger import (
  PRIORITIES,
  STEPS,
  Ledger,
  Part,
  Record,
)

FORMAT = 1
_READERS = 4

Manifest = Mapping[str, Any]


class Place(NamedTuple):
  """Rows start..stop of a chunk come from `row` on in a run."""

  chunk: Chunk
  start: int
  stop: int
  row: int


def check(manifest: Manifest, fields: Mapping[str, Field]) -> None:
  """Compares the steps in a manifest with those of this run.

  Raises:
    UserError: Naming the first key that differs.
  """
  if manifest.get('format') != FORMAT:
    raise UserError(
      f'the saved replay has format {manifest.get("format")!r}, this version '
      f'reads format {FORMAT}; start without it or with the version it is from'
    )
  ours = {key: field.describe() for key, field in fields.items()}
  theirs = {
    key: f'{dtype} {shape}' for key, (dtype, shape) in manifest['spec'].items()
  }
  for key in sorted(ours.keys() | theirs.keys()):
    one, two = theirs.get(key, 'missing'), ours.get(key, 'missing')
    if one != two:
      raise UserError(
        f'replay key {key!r} is {one} in the checkpoint and {two} in this '
        'run; use the environment and agent sizes of the checkpoint, or '
        'another logdir'
      )


def deal(
  manifests: Sequence[Manifest], index: int, count: int
) -> list[list[int]]:
  """Deals whole streams out to shards, so that all get about as many steps.

  Args:
    manifests: One per saved shard.
    index: The shard that asks.
    count: Number of shards now.

  Returns:
    For each manifest, the positions in its 'streams' that go to `index`.
    Over all shards every stream is dealt out once; the result is the same on
    all hosts.
  """
  sizes = [
    (sum(fill for _, fill, _ in stream), i, j)
    for i, manifest in enumerate(manifests)
    for j, stream in enumerate(manifest['streams'])
  ]
  loads = [0] * count
  dealt: list[list[int]] = [[] for _ in manifests]
  for size, i, j in sorted(sizes, key=lambda x: (-x[0], x[1], x[2])):
    owner = loads.index(min(loads))
    loads[owner] += size
    if owner == index:
      dealt[i].append(j)
  return dealt


def lay_out(
  manifests: Sequence[Manifest],
  shard: int,
  count: int,
  chunksize: int,
  fields: Mapping[str, Field],
) -> 'Layout':
  """Decides which saved streams a shard takes, and where they go.

  Args:
    manifests: Of all shards, in the order of shards.
    shard: The shard that asks.
    count: Number of shards now.
    chunksize: Steps per chunk now.
    fields: Fields of a step.

  Raises:
    ReplayCorrupt: If the shard's manifest is not among them.
  """
  if len(manifests) != count:
    layout = Layout(chunksize, fields, None)
    for manifest, streams in zip(
      manifests, deal(manifests, shard, count), strict=True
    ):
      layout.add(manifest, streams)
  else:
    own = [manifest for manifest in manifests if manifest['shard'] == shard]
    if not own:
      raise files.ReplayCorrupt(
        f'the checkpoint has no replay manifest for shard {shard} of {count}; '
        'restore an earlier checkpoint'
      )
    exact = own[0]['chunksize'] == chunksize
    layout = Layout(chunksize, fields, own[0] if exact else None)
    layout.add(own[0], range(len(own[0]['streams'])))
  layout.number_chunks()
  return layout


def encode_rng(state: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a PCG64 state without integers that JSON readers may round."""
  return {**state, 'state': {k: str(v) for k, v in state['state'].items()}}


def decode_rng(state: Mapping[str, Any]) -> dict[str, Any]:
  """Inverse of `encode_rng`."""
  return {**state, 'state': {k: int(v) for k, v in state['state'].items()}}


class Layout:
  """Which rows of which new chunks the rows of saved chunks go to.

  Attributes:
    own: The manifest that is restored exactly: chunks keep their serials and
      files stay in use. None if steps get new addresses.
    streams: The chunks of each restored stream, oldest first, linked, with
      their `fill` set and their arrays not yet filled.
    chunks: All of them in the order of their serials, the oldest first.
    next_serial: The serial that follows.
    inserted: Steps that the saved shards had ever taken in.
  """

  def __init__(
    self,
    chunksize: int,
    fields: Mapping[str, Field],
    own: Manifest | None,
  ) -> None:
    self._chunksize = chunksize
    self._fields = fields
    self._sources: list[Manifest] = []
    self._ages: dict[Chunk, tuple] = {}
    self._places: dict[tuple[int, int], tuple[list[Chunk], int]] = {}
    self._missing: dict[Chunk, np.ndarray] = {}
    self.own = own
    self.streams: list[list[Chunk]] = []
    self.chunks: list[Chunk] = []
    self.next_serial = 0
    self.inserted = 0

  def add(self, manifest: Manifest, streams: Iterable[int]) -> None:
    """Makes chunks for saved streams, given by their positions."""
    self._sources.append(manifest)
    self.inserted = max(self.inserted, manifest['inserted'])
    for stream in streams:
      grows = self.own is not None and stream in self.own['open']
      self._add_stream(manifest, manifest['streams'][stream], grows)

  def number_chunks(self) -> None:
    """Gives the chunks their serials, after the last `add`."""
    self.chunks = sorted(self._ages, key=self._ages.__getitem__)
    if self.own is not None:
      self.next_serial = self.own['next_serial']
      return
    self.next_serial = len(self.chunks)
    for serial, chunk in enumerate(self.chunks):
      chunk.serial = serial

  def read(
    self,
    directory: epath.PathLike,
    live: Mapping[int, Chunk],
    ledger: Ledger,
  ) -> None:
    """Fills the chunks from the files of the manifests.

    Args:
      directory: The replay directory.
      live: Chunks in memory, by serial; rows of others are skipped.
      ledger: Takes the files over if they stay in use.

    Raises:
      ReplayCorrupt: If a file is missing or damaged, or a step in no file.
    """
    used = {source for source, _ in self._places}
    for source in sorted(used):
      files_ = self._sources[source]['files']
      entries = [x for x in files_ if x['kind'] != PRIORITIES]
      for entry, (runs, *arrays) in _read_ahead(directory, entries):
        parts = self._fill(source, entry, runs, arrays, live)
        if self.own is not None:
          ledger.adopt(Record(**entry, live=0), parts)
    ledger.drop_dead()
    gaps = [self._missing[chunk].sum() for chunk in live.values()]
    if any(gaps):
      raise files.ReplayCorrupt(
        f'the manifest of the replay in {directory} names no file for '
        f'{sum(gaps)} of its steps; restore an earlier checkpoint'
      )

  def priorities(
    self, directory: epath.PathLike
  ) -> Iterator[tuple[int, np.ndarray]]:
    """Yields addresses and the priorities of the steps from there on.

    Raises:
      ReplayCorrupt: If a file is missing or damaged.
    """
    for source, manifest in enumerate(self._sources):
      for entry in manifest['files']:
        if entry['kind'] != PRIORITIES:
          continue
        runs, values = files.read_file(directory, entry)
        offset = 0
        for serial, start, stop in runs.tolist():
          for place in self._find(source, serial, start, stop):
            address = place.chunk.serial * self._chunksize + place.start
            first = offset + place.row
            count = place.stop - place.start
            yield address, values[first : first + count]
          offset += stop - start

  def online(self, length: int) -> list[int]:
    """Returns the saved online queues, if sequences are still as long."""
    return [
      place.chunk.serial * self._chunksize + place.start
      for source, manifest in enumerate(self._sources)
      if manifest['length'] == length
      for address in manifest['online']
      for place in self._find(source, *divmod(address, manifest['chunksize']))
    ]

  def _add_stream(
    self, manifest: Manifest, saved: Sequence[Sequence[int]], grows: bool
  ) -> None:
    source = len(self._sources) - 1
    starts = np.cumsum([0] + [fill for _, fill, _ in saved])
    rows = int(starts[-1])
    chunks: list[Chunk] = []
    for start in range(0, rows, self._chunksize):
      number = int(np.searchsorted(starts, start, side='right')) - 1
      serial, _, born = saved[number]
      skipped = start - int(starts[number])
      # A step is as old as the number of steps taken in before it.
      born += skipped * manifest['width']
      fill = min(self._chunksize, rows - start)
      size = self._chunksize if grows else fill
      chunk = Chunk(serial, len(self.streams), born, size, self._fields)
      chunk.fill = fill
      if chunks:
        chunks[-1].next = chunk
      chunks.append(chunk)
      self._ages[chunk] = (born, source, serial, skipped)
      self._missing[chunk] = np.ones(fill, bool)
    for (serial, _, _), start in zip(saved, starts, strict=False):
      self._places[source, serial] = (chunks, int(start))
    self.streams.append(chunks)

  def _find(
    self, source: int, serial: int, start: int, stop: int | None = None
  ) -> Iterator[Place]:
    """Yields where rows start..stop of a saved chunk go, if they go here."""
    chunks, base = self._places.get((source, serial), ([], 0))
    stop = start + 1 if stop is None else stop
    done = 0
    while chunks and start + done < stop:
      number, inside = divmod(base + start + done, self._chunksize)
      count = min(stop - start - done, self._chunksize - inside)
      yield Place(chunks[number], inside, inside + count, done)
      done += count

  def _fill(
    self,
    source: int,
    entry: Mapping[str, Any],
    runs: np.ndarray,
    arrays: Sequence[np.ndarray],
    live: Mapping[int, Chunk],
  ) -> list[Part]:
    """Copies the rows of a file; returns those that are in memory now."""
    steps = entry['kind'] == STEPS
    keys = list(self._fields) if steps else latent_keys(self._fields)
    taken: dict[Chunk, list[np.ndarray]] = {}
    offset = 0
    for serial, start, stop in runs.tolist():
      for place in self._find(source, serial, start, stop):
        chunk, rows = place.chunk, slice(place.start, place.stop)
        if chunk.serial not in live:
          continue
        first = offset + place.row
        last = first + place.stop - place.start
        for key, array in zip(keys, arrays, strict=True):
          chunk.arrays[key][rows] = array[first:last]
        if steps:
          self._missing[chunk][rows] = False
        taken.setdefault(chunk, []).append(np.arange(rows.start, rows.stop))
      offset += stop - start
    return [(chunk, np.concatenate(rows)) for chunk, rows in taken.items()]


def _read_ahead(
  directory: epath.PathLike, entries: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], list[np.ndarray]]]:
  """Reads files in the order of their index, the next few in the background."""
  todo = sorted(entries, key=lambda entry: entry['index'])
  with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
    reads: collections.deque = collections.deque()
    try:
      for entry in todo:
        reads.append((entry, pool.submit(files.read_file, directory, entry)))
        if len(reads) > _READERS:
          first, future = reads.popleft()
          yield first, future.result()
      while reads:
        first, future = reads.popleft()
        yield first, future.result()
    finally:
      for _, future in reads:
        future.cancel()
