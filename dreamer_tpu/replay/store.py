"""The chunks in memory: what comes in, what is dropped, what can be drawn."""

import collections
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dreamer_tpu.replay import collate
from dreamer_tpu.replay.chunks import Arrays, Chunk, Field
from dreamer_tpu.replay.intake import Intake
from dreamer_tpu.replay.sampling.mixture import Mixture, Sampling
from dreamer_tpu.replay.sampling.priority import Prioritized
from dreamer_tpu.replay.saving.restore import Layout


class Store:
  """Streams of steps in chunks, and the sequence starts among them.

  Not thread-safe; `Replay` locks.

  Attributes:
    chunks: Live chunks by serial, the oldest first.
    steps: Steps in them.
    inserted: Steps ever added, by which the age of chunks is told.
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
    on_evict: Callable[[Chunk], None],
  ) -> None:
    """Makes an empty store.

    Args:
      fields: The fields of a step.
      length: Steps per sequence.
      capacity: Most steps to hold.
      chunksize: Steps per chunk.
      width: Streams.
      online: Whether to fill the online queue.
      sampling: How starts are chosen.
      on_evict: Called with every chunk that is dropped.
    """
    self._fields = fields
    self._length = length
    self._capacity = capacity
    self._chunksize = chunksize
    self._width = width
    self._online = online
    self._sampling = sampling
    self._on_evict = on_evict
    self.chunks: collections.OrderedDict[int, Chunk] = collections.OrderedDict()
    self.clear()

  def clear(self) -> None:
    """Empties the store."""
    self.chunks.clear()
    self.steps = 0
    self.inserted = 0
    self._selector = Mixture(
      self._sampling, self.chunks, self._chunksize, self._length
    )
    self._queue: collections.deque[int] = collections.deque()
    self._intake = Intake(self._length, self._chunksize, self._open_chunk)
    self._next_serial = 0
    self._next_stream = 0

  def __len__(self) -> int:
    """Number of sequence starts."""
    return len(self._selector)

  def add(self, step: Arrays) -> None:
    """Adds one step to every stream: stored arrays [width, ...]."""
    while self.steps + self._width > self._capacity:
      self._evict()
    starts = self._intake.append(step)
    self.steps += self._width
    self.inserted += self._width
    if starts is not None:
      self._selector.insert(starts)
      if self._online and self._intake.full:
        self._queue.extend(starts.tolist())

  def draw(
    self, batch: int, online: bool, rng: np.random.Generator, mark: bool
  ) -> np.ndarray:
    """Returns sequence starts, int64 [batch]; see `Replay.sample`."""
    if not len(self._selector):
      raise ValueError('the replay holds no complete sequence yet')
    starts: list[int] = []
    while online and self._queue and len(starts) < batch:
      start = self._queue.popleft()
      if self._is_live(start):
        starts.append(start)
    drawn = self._selector.sample(rng, batch - len(starts), mark)
    return np.concatenate([np.array(starts, np.int64), drawn])

  def holds(self, addresses: np.ndarray) -> bool:
    """Whether all addresses are still stored."""
    return all(self._is_live(address) for address in addresses.tolist())

  def gather(
    self, starts: np.ndarray, offset: int, steps: int
  ) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Copies part of the sequences at `starts`; see `Replay.gather`."""
    window = (offset, offset + steps)
    if not 0 <= offset < offset + steps <= self._length:
      raise ValueError(f'steps {window} of sequences of {self._length}')
    return collate.gather(
      self.chunks, self._chunksize, self._fields, starts, window, self._length
    )

  def overwrite(self, addresses: np.ndarray, values: Arrays) -> None:
    """Overwrites latents [n, ...] at addresses, int64 [n], if still stored."""
    serials, rows = np.divmod(addresses, self._chunksize)
    breaks = (np.diff(addresses) != 1) | (np.diff(serials) != 0)
    cuts = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(addresses)]
    for start, stop in itertools.pairwise(cuts):
      chunk = self.chunks.get(int(serials[start]))
      if chunk is not None and rows[stop - 1] < chunk.fill:
        part = {key: value[start:stop] for key, value in values.items()}
        chunk.overwrite(int(rows[start]), part)

  @property
  def prioritized(self) -> Prioritized | None:
    """The selector by priority, if it has a share."""
    return self._selector.prioritized

  def state(self) -> dict[str, Any]:
    """Returns everything but the contents of the chunks, JSON-able.

    'streams' has, for every stream, (serial, fill, born) of its chunks;
    'open' the positions in it of the streams that grow, in the order of the
    rows of `add`.
    """
    streams: dict[int, list[list[int]]] = {}
    for chunk in self.chunks.values():
      entry = [chunk.serial, chunk.fill, chunk.born]
      streams.setdefault(chunk.stream, []).append(entry)
    order = {stream: i for i, stream in enumerate(streams)}
    return {
      'length': self._length,
      'chunksize': self._chunksize,
      'width': self._width,
      'streams': list(streams.values()),
      'open': [order[chunk.stream] for chunk in self._intake.tails],
      'position': self._intake.position,
      'next_serial': self._next_serial,
      'inserted': self.inserted,
      'online': list(self._queue),
    }

  def take_chunks(self, layout: Layout) -> None:
    """Takes over restored chunks whose contents come later."""
    for chunk in layout.chunks:
      self.chunks[chunk.serial] = chunk
      self.steps += chunk.fill
    self.inserted = layout.inserted
    self._next_serial = layout.next_serial
    self._next_stream = len(layout.streams)
    while self.steps > self._capacity:
      self._evict()

  def index(self, layout: Layout) -> None:
    """Makes the sequences of restored chunks available."""
    streams = [
      [chunk for chunk in stream if self.chunks.get(chunk.serial) is chunk]
      for stream in layout.streams
    ]
    self._selector.insert(self._complete(streams))
    if self._online:
      self._queue.extend(layout.online(self._length))
    if layout.own is not None and layout.own['width'] == self._width:
      growing: Sequence[list[Chunk]] = [streams[i] for i in layout.own['open']]
      self._intake.resume(growing, layout.own['position'])

  def _complete(self, streams: Sequence[Sequence[Chunk]]) -> np.ndarray:
    """The starts of all sequences, the oldest first."""
    starts = [np.zeros(0, np.int64)]
    times = [np.zeros(0, np.int64)]
    for stream in streams:
      left = sum(chunk.fill for chunk in stream) - self._length + 1
      for chunk in stream:
        rows = np.arange(min(chunk.fill, max(0, left)))
        starts.append(chunk.serial * self._chunksize + rows)
        times.append(chunk.born + rows * self._width)
        left -= chunk.fill
    order = np.lexsort((np.concatenate(starts), np.concatenate(times)))
    return np.concatenate(starts)[order]

  def _open_chunk(self, last: Chunk | None) -> Chunk:
    stream = self._next_stream if last is None else last.stream
    self._next_stream = max(self._next_stream, stream + 1)
    chunk = Chunk(
      self._next_serial, stream, self.inserted, self._chunksize, self._fields
    )
    self.chunks[chunk.serial] = chunk
    self._next_serial += 1
    return chunk

  def _evict(self) -> None:
    _, chunk = self.chunks.popitem(last=False)
    self.steps -= chunk.fill
    self._selector.remove(chunk.serial)
    self._on_evict(chunk)
    while self._queue and not self._is_live(self._queue[0]):
      self._queue.popleft()

  def _is_live(self, address: int) -> bool:
    return address // self._chunksize in self.chunks
