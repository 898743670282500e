"""The steps of a shard in memory."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dreamer_tpu.replay.chunks import Arrays, Chunk, Field, find_rows
from dreamer_tpu.replay.sampling import Sampling
from dreamer_tpu.replay.sampling.mixture import Mixture
from dreamer_tpu.replay.saving.loading import Layout
from dreamer_tpu.replay.writer import Writer


class Store:
  """Streams of steps in chunks, and the sequence starts among them.

  Not thread-safe; `Replay` locks.

  Attributes:
    chunks: Chunks by serial.
    steps: Steps stored.
    inserted: Steps ever added.
    selector: Chooses sequence starts in chunks that may be evicted.
    kept: The same in those that may not.
  """

  def __init__(
    self,
    fields: Mapping[str, Field],
    *,
    length: int,
    capacity: int,
    chunksize: int,
    width: int,
    online: bool,
    sampling: Sampling,
    keep_imported: float,
    before_overwrite: Callable[[Chunk, int, int], None],
  ) -> None:
    """Makes an empty store.

    Args:
      fields: Fields of a step.
      length: Steps per sequence.
      capacity: Maximum number of steps.
      chunksize: Steps per chunk.
      width: Number of streams.
      online: Whether to fill the online queue.
      sampling: Distribution over sequence starts.
      keep_imported: Share of the draws that imported chunks get, which then
        are not evicted; with 0 they are like others.
      before_overwrite: Called with a chunk and rows (start, stop) before
        their latents are overwritten.
    """
    self._fields = fields
    self._length = length
    self._capacity = capacity
    self._chunksize = chunksize
    self._width = width
    self._online = online
    self._sampling = sampling
    self._keep_imported = keep_imported
    self._before_overwrite = before_overwrite
    self.clear()

  def clear(self) -> None:
    """Removes all steps."""
    self.chunks: dict[int, Chunk] = {}
    self._evictable: collections.OrderedDict[int, Chunk]
    self._evictable = collections.OrderedDict()  # Oldest first.
    self._kept: dict[int, Chunk] = {}
    self.steps = 0
    self.inserted = 0
    self.selector, self.kept = (
      Mixture(self._sampling, chunks, self._chunksize, self._length)
      for chunks in (self._evictable, self._kept)
    )
    self._queue: collections.deque[int] = collections.deque()
    self._writer = Writer(self._length, self._chunksize, self._open_chunk)
    self._next_serial = 0
    self._next_stream = 0

  def __len__(self) -> int:
    """Returns the number of sequence starts."""
    return len(self.selector) + len(self.kept)

  def add(self, step: Arrays) -> None:
    """Adds one step, stored arrays [width, ...], to the streams."""
    self._extend(step, 1)

  def extend(self, steps: Arrays) -> None:
    """Adds consecutive steps, stored arrays [width, K, ...], to the streams."""
    total = steps['is_first'].shape[1]
    done = 0
    while done < total:
      stop = min(total, done + self._writer.room)
      part = {key: value[:, done:stop] for key, value in steps.items()}
      self._extend(part, stop - done)
      done = stop

  def _extend(self, steps: Arrays, count: int) -> None:
    """Adds at most as many steps as the open chunks hold."""
    new = count * self._width
    while self.steps + new > self._capacity:
      self._evict()
    starts = self._writer.extend(steps, count)
    self.steps += new
    self.inserted += new
    if not len(starts):
      return
    self.selector.insert(starts.reshape(-1))
    if self._online:
      # Those that end where streams are a whole number of sequences long.
      first = self._writer.position + 1 - len(starts)
      for row in starts[-first % self._length :: self._length]:
        self._queue.extend(row.tolist())

  def draw(
    self, batch: int, online: bool, rng: np.random.Generator, training: bool
  ) -> np.ndarray:
    """Returns sequence starts, int64 [batch]; see `Replay.sample`."""
    if not len(self):
      raise ValueError('the replay holds no complete sequence yet')
    kept = self._count_kept(batch, rng)
    starts: list[int] = []
    while online and self._queue and len(starts) < batch - kept:
      start = self._queue.popleft()
      if self._is_stored(start):
        starts.append(start)
    rest = batch - kept - len(starts)
    return np.concatenate(
      [
        np.array(starts, np.int64),
        self.selector.sample(rng, rest, training),
        self.kept.sample(rng, kept, training),
      ]
    )

  @property
  def imported(self) -> int:
    """Imported steps that are stored."""
    return sum(x.fill for x in self.chunks.values() if x.imported)

  def holds(self, addresses: np.ndarray) -> bool:
    """Returns whether all addresses are stored."""
    return all(self._is_stored(address) for address in addresses.tolist())

  def gather(
    self, starts: np.ndarray, first: int, steps: int
  ) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Copies steps first..first + steps of each sequence; see `Replay`.

    Copies every byte once.
    """
    if not 0 <= first < first + steps <= self._length:
      raise ValueError(
        f'steps {first}..{first + steps} of sequences of {self._length} steps'
      )
    stepid = np.empty((len(starts), steps), np.int64)
    follow = np.zeros(len(starts), bool)
    pieces = []
    for row, start in enumerate(starts.tolist()):
      serial, index = divmod(start, self._chunksize)
      chunk, index = _skip(self.chunks[serial], index + first)
      done = 0
      while done < steps:
        chunk, index = _skip(chunk, index)
        count = min(steps - done, self._chunksize - index)
        address = chunk.serial * self._chunksize + index
        stepid[row, done : done + count] = np.arange(address, address + count)
        pieces.append((row, done, chunk, index, count))
        done += count
        index += count
      if first + steps < self._length:
        chunk, index = _skip(chunk, index)
        follow[row] = chunk.arrays['is_first'][index]
    data = {}
    for key, field in self._fields.items():
      out = np.empty((len(starts), steps, *field.shape), field.stored)
      for row, done, chunk, index, count in pieces:
        source = chunk.arrays[key][index : index + count]
        out[row, done : done + count] = source
      data[key] = out.view(field.dtype)
    _mark_ends(data, follow, first == 0)
    return data, stepid

  def overwrite(self, addresses: np.ndarray, values: Arrays) -> None:
    """Overwrites latents [n, ...] at those of the addresses that are stored."""
    found = find_rows(addresses, self._chunksize, self.chunks)
    for chunk, start, stop, part in found:
      self._before_overwrite(chunk, start, stop)
      chunk.overwrite(start, stop, {k: v[part] for k, v in values.items()})

  def prioritize(self, addresses: np.ndarray, values: np.ndarray) -> None:
    """Sets priorities [n] at those of the addresses [n] that are stored."""
    self.selector.prioritize(addresses, values)
    if self._kept:
      self.kept.prioritize(addresses, values)

  def priorities(self) -> dict[int, np.ndarray]:
    """Returns copies of the priorities, float32 [fill] by serial."""
    return self.kept.priorities() | self.selector.priorities()

  def streams(self) -> dict[int, list[Chunk]]:
    """Returns the chunks of each stream, oldest first, by its number."""
    streams: dict[int, list[Chunk]] = {}
    for chunk in self.chunks.values():
      streams.setdefault(chunk.stream, []).append(chunk)
    return streams

  def state(self) -> dict[str, Any]:
    """Returns everything but the contents of the chunks, as JSON values.

    'streams' lists (serial, fill, inserted_at) of each chunk of each stream;
    'imported' the positions in it of the imported streams, 'open' those of the
    growing streams, in the order of the rows of `add`.
    """
    streams = self.streams()
    order = {stream: i for i, stream in enumerate(streams)}
    return {
      'length': self._length,
      'chunksize': self._chunksize,
      'width': self._width,
      'streams': [
        [[chunk.serial, chunk.fill, chunk.inserted_at] for chunk in chunks]
        for chunks in streams.values()
      ],
      'imported': [
        order[x] for x, (chunk, *_) in streams.items() if chunk.imported
      ],
      'open': [order[chunk.stream] for chunk in self._writer.open_chunks],
      'position': self._writer.position,
      'next_serial': self._next_serial,
      'inserted': self.inserted,
      'online': list(self._queue),
    }

  def load(self, layout: Layout) -> None:
    """Fills the empty store with restored chunks."""
    for chunk in layout.chunks:
      self._insert(chunk)
      self.steps += chunk.fill
    self.inserted = layout.inserted
    self._next_serial = layout.next_serial
    self._next_stream = len(layout.streams)
    starts = self._complete(layout.streams)
    kept = np.isin(starts // self._chunksize, list(self._kept))
    self.selector.insert(starts[~kept])
    self.kept.insert(starts[kept])
    if self._online:
      self._queue.extend(layout.online(self._length))
    saved = layout.exact
    if saved is not None and saved['width'] == self._width:
      growing = [layout.streams[i] for i in saved['open']]
      self._writer.resume(growing, saved['position'])

  def _complete(self, streams: Sequence[Sequence[Chunk]]) -> np.ndarray:
    """Returns the starts of all complete sequences, oldest first."""
    starts = [np.zeros(0, np.int64)]
    times = [np.zeros(0, np.int64)]
    for stream in streams:
      left = sum(chunk.fill for chunk in stream) - self._length + 1
      for chunk in stream:
        rows = np.arange(min(chunk.fill, max(0, left)))
        starts.append(chunk.serial * self._chunksize + rows)
        times.append(chunk.inserted_at + rows * self._width)
        left -= chunk.fill
    order = np.lexsort((np.concatenate(starts), np.concatenate(times)))
    return np.concatenate(starts)[order]

  def _open_chunk(self, last: Chunk | None) -> Chunk:
    stream = self._next_stream if last is None else last.stream
    self._next_stream = max(self._next_stream, stream + 1)
    chunk = Chunk(
      self._next_serial, stream, self.inserted, self._chunksize, self._fields
    )
    self._insert(chunk)
    self._next_serial += 1
    return chunk

  def _insert(self, chunk: Chunk) -> None:
    keep = chunk.imported and self._keep_imported > 0
    (self._kept if keep else self._evictable)[chunk.serial] = chunk
    self.chunks[chunk.serial] = chunk

  def _count_kept(self, batch: int, rng: np.random.Generator) -> int:
    """Returns how many of `batch` sequences come from kept chunks."""
    if not len(self.kept):
      return 0
    if not len(self.selector):
      return batch
    # Rounded at random, so that also small batches have the right share.
    return int(batch * self._keep_imported + rng.random())

  def _evict(self) -> None:
    _, chunk = self._evictable.popitem(last=False)
    del self.chunks[chunk.serial]
    self.steps -= chunk.fill
    self.selector.remove(chunk.serial)
    while self._queue and not self._is_stored(self._queue[0]):
      self._queue.popleft()

  def _is_stored(self, address: int) -> bool:
    return address // self._chunksize in self.chunks


def _skip(chunk: Chunk, index: int) -> tuple[Chunk, int]:
  """Returns the chunk of the stream that holds a row, and the row in it."""
  while chunk.next is not None and index >= chunk.fill:
    index -= chunk.fill
    chunk = chunk.next
  return chunk, index


def _mark_ends(
  data: dict[str, np.ndarray], follow: np.ndarray, from_start: bool
) -> None:
  """Sets is_last before every is_first, and is_first at sequence starts."""
  is_first, is_last = data['is_first'], data['is_last']
  is_last[:, :-1] |= is_first[:, 1:]
  is_last[:, -1] |= follow
  if from_start:
    is_first[:, 0] = True
