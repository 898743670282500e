"""Sampling by age: new sequences more often."""

import numpy as np


class Recency:
  """Every start in proportion to 1 / age^exponent.

  The newest start has age 1, the one before it 2, and so on. Takes 8 bytes a
  start, and 8 for the running sum of 1 / age^exponent.
  """

  def __init__(self, chunksize: int, exponent: float) -> None:
    self._chunksize = chunksize
    self._exponent = exponent
    self._starts = np.empty(64, np.int64)  # In order of age, the oldest first.
    self._begin = self._end = 0
    self._sums = np.zeros(0)

  def __len__(self) -> int:
    return self._end - self._begin

  def insert(self, starts: np.ndarray) -> None:
    """Adds starts, int64 [n], the oldest first."""
    end = self._end + len(starts)
    if end > len(self._starts):
      live = self._starts[self._begin : self._end]
      self._starts = np.empty(2 * (len(live) + len(starts)), np.int64)
      self._starts[: len(live)] = live
      self._begin, self._end = 0, len(live)
      end = len(live) + len(starts)
    self._starts[self._end : end] = starts
    self._end = end

  def remove(self, serial: int) -> None:
    """Takes all starts of a chunk out; it has at most chunksize."""
    left = self._chunksize
    last = self._begin
    # Those of the oldest chunk are near the beginning.
    while left and last < self._end:
      part = self._starts[last : min(self._end, last + 16 * self._chunksize)]
      found = int(np.sum(part // self._chunksize == serial))
      if not found and left < self._chunksize:
        break
      left -= found
      last += len(part)
    part = self._starts[self._begin : last]
    kept = part[part // self._chunksize != serial]
    self._begin = last - len(kept)
    self._starts[self._begin : last] = kept

  def sample(
    self, rng: np.random.Generator, n: int, mark: bool = True
  ) -> np.ndarray:
    """Returns n starts, int64 [n]."""
    del mark
    count = len(self)
    if count > len(self._sums):
      ages = np.arange(1, 2 * count + 1, dtype=np.float64)
      self._sums = np.cumsum(ages**-self._exponent)
    sums = self._sums[:count]
    younger = np.searchsorted(sums, rng.random(n) * sums[-1], side='right')
    return self._starts[self._end - 1 - np.minimum(younger, count - 1)]
