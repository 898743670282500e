"""Samples recent sequences more often."""

import numpy as np


class Recency:
  """Samples starts in proportion to 1 / age^exponent.

  The newest start has age 1, the one before it age 2, and so on. Takes 16 bytes
  per start.
  """

  def __init__(self, chunksize: int, exponent: float) -> None:
    self._chunksize = chunksize
    self._exponent = exponent
    self._starts = np.empty(64, np.int64)  # Oldest first, in begin..end.
    self._begin = self._end = 0
    self._sums = np.zeros(0)  # Running sum of 1 / age^exponent.

  def __len__(self) -> int:
    return self._end - self._begin

  def insert(self, starts: np.ndarray) -> None:
    """Adds starts, int64 [n], oldest first."""
    end = self._end + len(starts)
    if end > len(self._starts):
      old = self._starts[self._begin : self._end]
      self._starts = np.empty(2 * (len(old) + len(starts)), np.int64)
      self._starts[: len(old)] = old
      self._begin, self._end = 0, len(old)
      end = len(old) + len(starts)
    self._starts[self._end : end] = starts
    self._end = end

  def remove(self, serial: int) -> None:
    """Removes all starts in a chunk, at most `chunksize`."""
    left = self._chunksize
    last = self._begin
    # The starts of the oldest chunk are near the beginning.
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
    self, rng: np.random.Generator, n: int, training: bool = True
  ) -> np.ndarray:
    """Returns n starts, int64 [n]."""
    del training
    count = len(self)
    if count > len(self._sums):
      ages = np.arange(1, 2 * count + 1, dtype=np.float64)
      self._sums = np.cumsum(ages**-self._exponent)
    sums = self._sums[:count]
    younger = np.searchsorted(sums, rng.random(n) * sums[-1], side='right')
    return self._starts[self._end - 1 - np.minimum(younger, count - 1)]
