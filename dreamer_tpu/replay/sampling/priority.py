"""Samples sequences in proportion to their priority."""

from collections.abc import Iterator, Mapping

import numpy as np

from dreamer_tpu.replay.chunks import Chunk, find_rows
from dreamer_tpu.replay.sampling import Sampling

Run = tuple[int, int, int]  # Serial of a chunk, first row, row after the last.


class Prioritized:
  """Samples starts in proportion to the weight of their sequence.

  A sequence of steps with priorities p has weight maxfrac * max(p^e) +
  (1 - maxfrac) * mean(p^e) with the exponent e. Sequences of infinite
  weight are drawn first, uniformly. If all weights are 0, sampling is uniform.

  Takes 8 bytes per step, for its priority and the weight of its sequence. A
  draw searches the sums per chunk, then the chunk.
  """

  def __init__(
    self,
    sampling: Sampling,
    chunks: Mapping[int, Chunk],
    chunksize: int,
    length: int,
  ) -> None:
    """Makes an empty selector; see `Mixture` for the arguments."""
    self._sampling = sampling
    self._chunks = chunks
    self._chunksize = chunksize
    self._length = length
    self._prios: dict[int, np.ndarray] = {}
    self._weights: dict[int, np.ndarray] = {}
    self._previous: dict[int, int] = {}  # Serial of the chunk before a chunk.
    # Columns are serial - first. Rows: number of starts, of starts of infinite
    # weight, and sum of the finite weights.
    self._first = 0
    self._table = np.zeros((3, 64))

  def __len__(self) -> int:
    return int(self._table[0].sum())

  def insert(self, starts: np.ndarray) -> None:
    """Adds starts, int64 [n]."""
    serials = starts // self._chunksize
    found, counts = np.unique(serials, return_counts=True)
    for serial, count in zip(found.tolist(), counts.tolist(), strict=True):
      slot = self._slot(serial)
      begin = int(self._table[0, slot])
      self._table[0, slot] += count
      self._refresh(serial, begin, begin + count)

  def remove(self, serial: int) -> None:
    """Removes all starts in a chunk."""
    self._prios.pop(serial, None)
    self._weights.pop(serial, None)
    self._previous.pop(serial, None)
    if 0 <= serial - self._first < self._table.shape[1]:
      self._table[:, serial - self._first] = 0

  def sample(
    self, rng: np.random.Generator, n: int, training: bool = True
  ) -> np.ndarray:
    """Returns n starts, int64 [n], drawn one after the other.

    Args:
      rng: Generator to draw with.
      n: Number of draws.
      training: Whether `zero_on_sample` applies.
    """
    starts = np.empty(n, np.int64)
    for i in range(n):
      starts[i] = self._draw(rng)
      if self._sampling.zero_on_sample and training:
        serial, row = divmod(int(starts[i]), self._chunksize)
        for run in self._runs(serial, row, self._length):
          self._set(run, 0.0)
    return starts

  def prioritize(self, addresses: np.ndarray, values: np.ndarray) -> None:
    """Sets priorities [n] at those of the addresses [n] that are stored."""
    found = find_rows(addresses, self._chunksize, self._chunks)
    for chunk, start, stop, part in found:
      self._set((chunk.serial, start, stop), values[part])

  def priorities(self) -> dict[int, np.ndarray]:
    """Returns copies of the priorities, float32 [fill] by serial."""
    return {
      serial: self._prio(serial)[: chunk.fill].copy()
      for serial, chunk in self._chunks.items()
    }

  def _draw(self, rng: np.random.Generator) -> int:
    counts, infinite, sums = self._table
    if infinite.any():
      slot, rank = _pick(infinite, int(rng.integers(int(infinite.sum()))))
      weights = self._weights[self._first + slot][: int(counts[slot])]
      row = int(np.flatnonzero(np.isinf(weights))[int(rank)])
    elif sums.any():
      slot, rest = _pick(sums, rng.random() * sums.sum())
      weights = self._weights[self._first + slot][: int(counts[slot])]
      row, _ = _pick(weights.astype(np.float64), rest)
    else:
      slot, rank = _pick(counts, int(rng.integers(int(counts.sum()))))
      row = int(rank)
    return (self._first + slot) * self._chunksize + row

  def _set(self, run: Run, values: np.ndarray | float) -> None:
    """Sets the priorities of a run and updates the weights they affect."""
    serial, begin, end = run
    self._prio(serial)[begin:end] = values
    begin -= self._length - 1
    self._refresh(serial, max(begin, 0), end)
    while begin < 0:
      serial = self._previous.get(serial, -1)
      if serial not in self._chunks:
        return
      end = self._chunks[serial].fill
      begin += end
      self._refresh(serial, max(begin, 0), end)

  def _refresh(self, serial: int, begin: int, end: int) -> None:
    """Recomputes the weights of the starts in rows begin..end."""
    slot = self._slot(serial)
    count = int(self._table[0, slot])
    end = min(end, count)
    if begin < end:
      runs = self._runs(serial, begin, end - begin + self._length - 1)
      prios = [self._prio(x)[first:last] for x, first, last in runs]
      powers = (
        np.concatenate(prios).astype(np.float64) ** self._sampling.exponent
      )
      windows = np.lib.stride_tricks.sliding_window_view(powers, self._length)
      mean, most = windows.mean(1), windows.max(1)
      maxfrac = self._sampling.maxfrac
      # Weights of infinite priorities are set below; 0 * inf is nan.
      with np.errstate(invalid='ignore'):
        weights = maxfrac * most + (1 - maxfrac) * mean
      weights[np.isinf(most)] = np.inf
      self._weights[serial][begin:end] = weights
    weights = self._weights[serial][:count]
    infinite = np.isinf(weights)
    self._table[1, slot] = infinite.sum()
    self._table[2, slot] = weights[~infinite].sum(dtype=np.float64)

  def _runs(self, serial: int, row: int, steps: int) -> Iterator[Run]:
    """Yields the rows of consecutive steps of a stream, chunk by chunk."""
    chunk: Chunk | None = self._chunks[serial]
    while steps > 0 and chunk is not None:
      count = min(steps, chunk.fill - row)
      if count > 0:
        yield chunk.serial, row, row + count
        steps -= count
      row = max(0, row - chunk.fill)
      if chunk.next is not None:
        self._previous[chunk.next.serial] = chunk.serial
      chunk = chunk.next

  def _prio(self, serial: int) -> np.ndarray:
    if serial not in self._prios:
      rows = self._chunksize
      self._prios[serial] = np.full(rows, self._sampling.initial, np.float32)
      self._weights[serial] = np.zeros(rows, np.float32)
    return self._prios[serial]

  def _slot(self, serial: int) -> int:
    """Returns the table column of a chunk, growing the table if needed."""
    self._prio(serial)
    used = np.flatnonzero(self._table[0])
    size = self._table.shape[1]
    if not 0 <= serial - self._first < size:
      low = min([serial, *(self._first + used[:1])])
      high = max([serial, *(self._first + used[-1:])])
      while size < 2 * (high + 1 - low):
        size *= 2
      table = np.zeros((3, size))
      table[:, self._first + used - low] = self._table[:, used]
      self._first, self._table = int(low), table
    return serial - self._first


def _pick(weights: np.ndarray, value: float) -> tuple[int, float]:
  """Returns the entry where the running sum passes `value`, and the rest."""
  sums = weights.cumsum()
  index = int(sums.searchsorted(value, side='right'))
  if index == len(sums):  # By rounding.
    index = int(np.flatnonzero(weights)[-1])
  return index, value - (sums[index] - weights[index])
