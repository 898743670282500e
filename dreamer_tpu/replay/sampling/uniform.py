"""Samples all sequences with equal probability.

A selector holds the addresses (`stepid`, see buffer.py) of all sequence starts
that may be sampled. The replay calls

  insert(starts)     adds starts, int64 [n], oldest first; within a chunk in
                     order and without gaps from its first row
  remove(serial)     removes all starts in a chunk
  sample(rng, n)     returns starts, int64 [n], drawn with replacement
  len(selector)      returns the number of starts

All randomness comes from `rng`, so that samples are reproducible.
"""

import numpy as np


class Uniform:
  """Samples all starts with equal probability.

  Keeps one count per chunk instead of one entry per start. A sample is a binary
  search in the running sum of the counts.
  """

  def __init__(self, chunksize: int) -> None:
    self._chunksize = chunksize
    self._counts = np.zeros(64, np.int64)
    self._first = 0  # Serial of counts[0].
    self._used = 0
    self._total = 0
    self._sums: np.ndarray | None = None

  def __len__(self) -> int:
    return self._total

  def insert(self, starts: np.ndarray) -> None:
    """Adds starts, int64 [n]."""
    if not len(starts):
      return
    serials = starts // self._chunksize
    low, high = int(np.minimum.reduce(serials)), int(np.maximum.reduce(serials))
    if low < self._first or high >= self._first + len(self._counts):
      self._make_room(low, high)
    self._used = max(self._used, high + 1 - self._first)
    self._counts[low - self._first : high + 1 - self._first] += np.bincount(
      serials - low
    )
    self._total += len(starts)
    self._sums = None

  def remove(self, serial: int) -> None:
    """Removes all starts in a chunk."""
    slot = serial - self._first
    if 0 <= slot < self._used:
      self._total -= int(self._counts[slot])
      self._counts[slot] = 0
      self._sums = None

  def sample(
    self, rng: np.random.Generator, n: int, training: bool = True
  ) -> np.ndarray:
    """Returns n starts, int64 [n]."""
    del training
    if self._sums is None:
      self._sums = np.cumsum(self._counts[: self._used])
    ranks = rng.integers(self._total, size=n)
    slots = np.searchsorted(self._sums, ranks, side='right')
    rows = ranks - self._sums[slots] + self._counts[slots]
    return (self._first + slots) * self._chunksize + rows

  def _make_room(self, low: int, high: int) -> None:
    """Moves the counts so that serials low..high fit."""
    serials = self._first + np.flatnonzero(self._counts)
    counts = self._counts[serials - self._first]
    if len(serials):
      low, high = min(low, int(serials[0])), max(high, int(serials[-1]))
    size = len(self._counts)
    while size < 2 * (high + 1 - low):
      size *= 2
    self._counts = np.zeros(size, np.int64)
    self._counts[serials - low] = counts
    self._first, self._used = low, high + 1 - low
