"""Reading a saved replay back, also into another number of shards."""

import collections
import concurrent.futures
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.errors import UserError
from dreamer_tpu.replay import files
from dreamer_tpu.replay.chunks import Chunk, Field, latent_keys
from dreamer_tpu.replay.ledger import STEPS, Ledger, Part, Record

FORMAT = 1
_READERS = 4

Manifest = Mapping[str, Any]


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
    key: f'{dtype} {shape}' for key, (shape, dtype) in manifest['spec'].items()
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


class Layout:
  """Where the rows of saved chunks go: the chunks to be, in order of age.

  Attributes:
    streams: The chunks of each restored stream, oldest first. They are empty
      and have no serial yet, unless the saved ones are kept.
  """

  def __init__(self, chunksize: int, fields: Mapping[str, Field]) -> None:
    self._chunksize = chunksize
    self._fields = fields
    self._ages: dict[int, tuple] = {}
    self._places: dict[tuple[int, int], tuple[list[Chunk], int]] = {}
    self._fills: dict[tuple[int, int], int] = {}
    self.streams: list[list[Chunk]] = []

  def add(self, source: int, manifest: Manifest, stream: int) -> None:
    """Makes room for a saved stream of manifest number `source`."""
    saved = manifest['streams'][stream]
    rows = sum(fill for _, fill, _ in saved)
    starts = np.cumsum([0] + [fill for _, fill, _ in saved])
    chunks = []
    for start in range(0, rows, self._chunksize):
      old = int(np.searchsorted(starts, start, side='right')) - 1
      serial, _, born = saved[old]
      # A step is as old as the number of steps taken in before it.
      born += (start - int(starts[old])) * manifest['width']
      open_end = stream in manifest['open'] and start + self._chunksize >= rows
      size = self._chunksize if open_end else rows - start
      chunk = Chunk(
        serial,
        len(self.streams),
        born,
        min(self._chunksize, size),
        self._fields,
      )
      chunk.fill = min(self._chunksize, rows - start)
      self._ages[id(chunk)] = (born, source, serial, start)
      chunks.append(chunk)
    for one, two in zip(chunks, chunks[1:], strict=False):
      one.next = two
    for (serial, fill, _), start in zip(saved, starts, strict=False):
      self._places[source, serial] = (chunks, int(start))
      self._fills[source, serial] = fill
    self.streams.append(chunks)

  def by_age(self) -> list[Chunk]:
    """Returns all chunks, the oldest first."""
    chunks = [chunk for stream in self.streams for chunk in stream]
    return sorted(chunks, key=lambda chunk: self._ages[id(chunk)])

  def targets(
    self, source: int, run: Sequence[int]
  ) -> Iterator[tuple[Chunk, int, int, int]]:
    """Yields (chunk, start, stop, offset in the run) for a run of rows."""
    serial, start, stop = (int(x) for x in run)
    if (source, serial) not in self._places:
      return
    chunks, base = self._places[source, serial]
    stop = min(stop, self._fills[source, serial])
    row = start
    while row < stop:
      number, inside = divmod(base + row, self._chunksize)
      length = min(stop - row, self._chunksize - inside)
      yield chunks[number], inside, inside + length, row - start
      row += length


def read(
  directory: epath.PathLike,
  source: int,
  manifest: Manifest,
  layout: Layout,
  live: Mapping[int, Chunk],
  fields: Mapping[str, Field],
  ledger: Ledger | None,
) -> None:
  """Fills the chunks of a layout from the files of one manifest.

  Args:
    directory: The replay directory.
    source: Number of the manifest in the layout.
    manifest: The manifest.
    layout: Where rows go.
    live: Chunks by serial that are in memory; rows of others are skipped.
    fields: Fields of a step.
    ledger: Takes the files over, unless None.

  Raises:
    ReplayCorrupt: If a file is missing or damaged, or rows are in no file.
  """
  covered = {
    chunk.serial: np.zeros(chunk.fill, bool)
    for stream in layout.streams
    for chunk in stream
  }
  for entry, (runs, *arrays) in _read_ahead(directory, manifest['files']):
    keys = list(fields) if entry['kind'] == STEPS else latent_keys(fields)
    parts: dict[int, list[np.ndarray]] = {}
    row = 0
    for run in runs:
      for chunk, start, stop, skip in layout.targets(source, run):
        if chunk.serial not in live:
          continue
        window = slice(row + skip, row + skip + stop - start)
        for key, array in zip(keys, arrays, strict=True):
          chunk.arrays[key][start:stop] = array[window]
        if entry['kind'] == STEPS:
          covered[chunk.serial][start:stop] = True
        parts.setdefault(chunk.serial, []).append(np.arange(start, stop))
      row += int(run[2] - run[1])
    if ledger is not None:
      taken: list[Part] = [
        (live[serial], np.concatenate(rows)) for serial, rows in parts.items()
      ]
      ledger.adopt(Record(**entry, live=0), taken)
