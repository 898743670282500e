"""Loads a saved replay, also into a different number of shards."""

import collections
import concurrent.futures
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from dreamer_tpu.errors import UserError
from dreamer_tpu.replay.chunks import Chunk, Field, latent_keys
from dreamer_tpu.replay.saving import files
from dreamer_tpu.replay.saving.ledger import PRIORITIES, STEPS, Ledger

FORMAT = 1
_READERS = 4

Manifest = Mapping[str, Any]


def spec_to_json(fields: Mapping[str, Field]) -> dict[str, Any]:
  """Returns the 'spec' of a manifest: dtype and shape of each key."""
  return {
    key: [field.dtype.name, list(field.shape)] for key, field in fields.items()
  }


def check_format(manifest: Manifest) -> None:
  """Raises a UserError if another version has saved a manifest."""
  if manifest.get('format') != FORMAT:
    raise UserError(
      f'the saved replay has format {manifest.get("format")!r}, this version '
      f'reads format {FORMAT}; use the version that saved it or a new logdir'
    )


def check_spec(manifest: Manifest, fields: Mapping[str, Field]) -> None:
  """Compares the steps of a manifest with those of this run.

  Raises:
    UserError: They differ; the message names the first key that does.
  """
  check_format(manifest)
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


class Part(NamedTuple):
  """Rows of a saved stream.

  Attributes:
    source: Position of its manifest.
    stream: Position in the 'streams' of the manifest.
    start, stop: First row, and row after the last.
  """

  source: int
  stream: int
  start: int
  stop: int


def assign_parts(
  manifests: Sequence[Manifest], shard: int, count: int
) -> list[Part]:
  """Distributes saved streams over shards, balancing the number of steps.

  Streams of environments stay whole. Imported streams are cut, so that every
  shard gets an equal part of them. Deterministic, so that all hosts agree
  without communication.

  Args:
    manifests: One per saved shard.
    shard: This shard.
    count: Number of shards now.

  Returns:
    The parts of `shard`.
  """
  streams = [_whole_streams(i, x) for i, x in enumerate(manifests)]
  parts = [part for own, _ in streams for part in own]
  loads = [0] * count
  assigned = []
  for part in sorted(parts, key=lambda x: (x.start - x.stop, x)):
    owner = loads.index(min(loads))
    loads[owner] += part.stop
    if owner == shard:
      assigned.append(part)
  imported = [part for _, others in streams for part in others]
  total = sum(part.stop for part in imported)
  low, high = total * shard // count, total * (shard + 1) // count
  for part in imported:
    start, stop = max(0, low), min(part.stop, high)
    if start < stop:
      assigned.append(part._replace(start=start, stop=stop))
    low -= part.stop
    high -= part.stop
  return sorted(assigned)


def most_imported(manifests: Sequence[Manifest], count: int) -> int:
  """Returns the imported steps of that of `count` shards which gets most."""
  totals = [
    sum(part.stop for part in _whole_streams(i, manifest)[1])
    for i, manifest in enumerate(manifests)
  ]
  if len(manifests) == count:
    return max(totals, default=0)
  return -(-sum(totals) // count)


def _whole_streams(
  source: int, manifest: Manifest
) -> tuple[list[Part], list[Part]]:
  """Returns the streams of environments, and the imported ones."""
  kinds: tuple[list[Part], list[Part]] = [], []
  for stream, chunks in enumerate(manifest['streams']):
    rows = sum(fill for _, fill, _ in chunks)
    imported = stream in manifest.get('imported', ())
    kinds[imported].append(Part(source, stream, 0, rows))
  return kinds


def plan_layout(
  manifests: Sequence[Manifest],
  shard: int,
  count: int,
  capacity: int,
  chunksize: int,
  fields: Mapping[str, Field],
  keep_imported: bool,
) -> 'Layout':
  """Decides which saved steps a shard takes and which chunks they go to.

  Args:
    manifests: Manifests of all shards, in the order of shards.
    shard: This shard.
    count: Number of shards now.
    capacity: Maximum number of steps; the oldest chunks are left out.
    chunksize: Steps per chunk now.
    fields: Fields of a step.
    keep_imported: Whether no imported chunk may be left out.

  Raises:
    ReplayCorrupt: The shard's manifest is not among them.
  """
  if len(manifests) != count:
    layout = Layout(manifests, chunksize, fields, None)
    parts = assign_parts(manifests, shard, count)
  else:
    own = next((x for x in manifests if x['shard'] == shard), None)
    if own is None:
      raise files.ReplayCorrupt(
        f'the checkpoint has no replay manifest for shard {shard} of {count}; '
        'restore an earlier checkpoint'
      )
    exact = own if own['chunksize'] == chunksize else None
    layout = Layout([own], chunksize, fields, exact)
    parts = sorted(itertools.chain(*_whole_streams(0, own)))
  for part in parts:
    layout.add_stream(part)
  layout.number_chunks(capacity, keep_imported)
  return layout


class Layout:
  """Chunks for saved steps, and the place of each saved row in them.

  Attributes:
    exact: The manifest that is restored exactly, so that steps keep their
      addresses and files stay in use. None if steps get new addresses.
    streams: Chunks of each restored stream, oldest first, linked, with `fill`
      set. Their arrays are filled by `read`.
    chunks: All chunks in the order of their serials.
    next_serial: First unused serial.
    inserted: Steps that the saved shards ever inserted.
  """

  def __init__(
    self,
    manifests: Sequence[Manifest],
    chunksize: int,
    fields: Mapping[str, Field],
    exact: Manifest | None,
  ) -> None:
    self._manifests = manifests
    self._chunksize = chunksize
    self._fields = fields
    self._ages: dict[Chunk, tuple] = {}
    # For each saved chunk, the chunks of its stream, its first row in them
    # (below 0 if they begin in it), and the number of their rows.
    self._places: dict[tuple[int, int], tuple[list[Chunk], int, int]] = {}
    self._unread: dict[Chunk, np.ndarray] = {}
    self.exact = exact
    self.streams: list[list[Chunk]] = []
    self.chunks: list[Chunk] = []
    self.next_serial = 0
    self.inserted = max((x['inserted'] for x in manifests), default=0)

  def add_stream(self, part: Part) -> None:
    """Makes chunks for rows of a saved stream."""
    manifest = self._manifests[part.source]
    saved = manifest['streams'][part.stream]
    grows = self.exact is not None and part.stream in manifest['open']
    imported = part.stream in manifest.get('imported', ())
    starts = np.cumsum([0] + [fill for _, fill, _ in saved])
    chunks: list[Chunk] = []
    for start in range(part.start, part.stop, self._chunksize):
      number = int(np.searchsorted(starts, start, side='right')) - 1
      serial, _, inserted_at = saved[number]
      skipped = start - int(starts[number])
      inserted_at += skipped * manifest['width']
      fill = min(self._chunksize, part.stop - start)
      size = self._chunksize if grows else fill
      chunk = Chunk(
        serial, len(self.streams), inserted_at, size, self._fields, imported
      )
      chunk.fill = fill
      if chunks:
        chunks[-1].next = chunk
      chunks.append(chunk)
      self._ages[chunk] = (inserted_at, part.source, serial, skipped)
    for (serial, _, _), start in zip(saved, starts, strict=False):
      base, rows = int(start) - part.start, part.stop - part.start
      self._places[part.source, serial] = (chunks, base, rows)
    self.streams.append(chunks)

  def number_chunks(self, capacity: int, keep_imported: bool) -> None:
    """Sets serials by age and drops the oldest chunks beyond the capacity."""
    chunks = sorted(self._ages, key=self._ages.__getitem__)
    if self.exact is not None:
      self.next_serial = self.exact['next_serial']
    else:
      self.next_serial = len(chunks)
      for serial, chunk in enumerate(chunks):
        chunk.serial = serial
    kept = {x for x in chunks if keep_imported and x.imported}
    used = sum(chunk.fill for chunk in kept)
    others = [x for x in chunks if x not in kept]
    sizes = used + np.cumsum([chunk.fill for chunk in reversed(others)])
    dropped = set(others[: len(others) - int(np.sum(sizes <= capacity))])
    self.chunks = [x for x in chunks if x not in dropped]
    self._unread = {chunk: np.ones(chunk.fill, bool) for chunk in self.chunks}
    self.streams = [
      [chunk for chunk in stream if chunk in self._unread]
      for stream in self.streams
    ]

  def read(self, directory: epath.PathLike, ledger: Ledger) -> None:
    """Fills the chunks from the files of the manifests.

    Args:
      directory: The replay directory.
      ledger: Takes over the files if the restore is exact.

    Raises:
      ReplayCorrupt: A file is missing or corrupt, or a step is in no file.
    """
    if self.exact is not None:
      ledger.track({chunk.serial: chunk for chunk in self.chunks})
    for source in sorted({source for source, _ in self._places}):
      entries = sorted(
        self._entries(source, latents=True), key=lambda entry: entry['index']
      )
      contents = _read_ahead(directory, entries)
      for entry, (runs, *arrays) in zip(entries, contents, strict=True):
        self._fill(source, entry['kind'] == STEPS, runs, arrays)
        if self.exact is not None:
          ledger.register(entry, runs.copy())  # Not a view of the file.
    missing = sum(int(unread.sum()) for unread in self._unread.values())
    if missing:
      raise files.ReplayCorrupt(
        f'the manifest of the replay in {directory} names no file for '
        f'{missing} of its steps; restore an earlier checkpoint'
      )

  def priorities(
    self, directory: epath.PathLike
  ) -> Iterator[tuple[int, np.ndarray]]:
    """Yields addresses and the priorities of the steps that start there.

    Raises:
      ReplayCorrupt: A file is missing or corrupt.
    """
    for source in range(len(self._manifests)):
      for entry in self._entries(source, latents=False):
        runs, values = files.read_file(directory, entry)
        for chunk, rows, saved in self._find(source, runs):
          yield chunk.serial * self._chunksize + rows.start, values[saved]

  def online(self, length: int) -> list[int]:
    """Returns the saved online queues if the sequence length is unchanged."""
    addresses = []
    for source, manifest in enumerate(self._manifests):
      if manifest['length'] == length:
        queue = np.array(manifest['online'], np.int64)
        serials, rows = np.divmod(queue, manifest['chunksize'])
        runs = np.stack([serials, rows, rows + 1], 1)
        for chunk, place, _ in self._find(source, runs):
          addresses.append(chunk.serial * self._chunksize + place.start)
    return addresses

  def _entries(self, source: int, latents: bool) -> list[Mapping[str, Any]]:
    """Returns the files of a manifest with latents, or with priorities."""
    entries = self._manifests[source]['files']
    return [x for x in entries if (x['kind'] != PRIORITIES) == latents]

  def _find(
    self, source: int, runs: np.ndarray
  ) -> Iterator[tuple[Chunk, slice, slice]]:
    """Finds the places of the rows of a file, int64 [r, 3] runs.

    Yields:
      A chunk, rows in it, and the rows of the file that go there.
    """
    offset = 0
    for serial, start, stop in runs.tolist():
      chunks, base, rows = self._places.get((source, serial), ([], 0, 0))
      row = max(start, -base)
      end = min(stop, rows - base)
      while row < end:
        number, inside = divmod(base + row, self._chunksize)
        count = min(end - row, self._chunksize - inside)
        if chunks[number] in self._unread:
          saved = offset + row - start
          yield (
            chunks[number],
            slice(inside, inside + count),
            slice(saved, saved + count),
          )
        row += count
      offset += stop - start

  def _fill(
    self,
    source: int,
    steps: bool,
    runs: np.ndarray,
    arrays: Sequence[np.ndarray],
  ) -> None:
    """Copies the rows of a file of steps or latents to their places."""
    keys = list(self._fields) if steps else latent_keys(self._fields)
    for chunk, rows, saved in self._find(source, runs):
      for key, array in zip(keys, arrays, strict=True):
        chunk.arrays[key][rows] = array[saved]
      if steps:
        self._unread[chunk][rows] = False


def _read_ahead(
  directory: epath.PathLike, entries: Iterable[Mapping[str, Any]]
) -> Iterator[list[np.ndarray]]:
  """Yields the arrays of files in order, reading the next few in threads."""
  with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
    reads: collections.deque = collections.deque()
    for entry in entries:
      reads.append(pool.submit(files.read_file, directory, entry))
      if len(reads) > _READERS:
        yield reads.popleft().result()
    while reads:
      yield reads.popleft().result()
