"""Mixture of selectors, each with a share of the draws."""

from collections.abc import Mapping

import numpy as np

from dreamer_tpu.replay.chunks import Chunk
from dreamer_tpu.replay.sampling import Sampling
from dreamer_tpu.replay.sampling.priority import Prioritized
from dreamer_tpu.replay.sampling.recency import Recency
from dreamer_tpu.replay.sampling.uniform import Uniform

Selector = Uniform | Prioritized | Recency


class Mixture:
  """The selectors that have a share."""

  def __init__(
    self,
    sampling: Sampling,
    chunks: Mapping[int, Chunk],
    chunksize: int,
    length: int,
  ) -> None:
    """Makes empty selectors.

    Args:
      sampling: Shares and parameters.
      chunks: Chunks in memory by serial.
      chunksize: Steps per chunk.
      length: Steps per sequence.
    """
    self._prioritized: Prioritized | None = None
    selectors: list[tuple[float, Selector]] = []
    if sampling.uniform:
      selectors.append((sampling.uniform, Uniform(chunksize)))
    if sampling.priority:
      self._prioritized = Prioritized(sampling, chunks, chunksize, length)
      selectors.append((sampling.priority, self._prioritized))
    if sampling.recency:
      recency = Recency(chunksize, sampling.recexp)
      selectors.append((sampling.recency, recency))
    total = sum(share for share, _ in selectors)
    self._shares = [share / total for share, _ in selectors]
    self._selectors = [selector for _, selector in selectors]

  def __len__(self) -> int:
    return len(self._selectors[0])

  def insert(self, starts: np.ndarray) -> None:
    """Adds starts, int64 [n]."""
    for selector in self._selectors:
      selector.insert(starts)

  def remove(self, serial: int) -> None:
    """Removes all starts in a chunk."""
    for selector in self._selectors:
      selector.remove(serial)

  def sample(
    self, rng: np.random.Generator, n: int, training: bool = True
  ) -> np.ndarray:
    """Returns n starts, int64 [n], each from a random selector."""
    if not n:
      return np.zeros(0, np.int64)
    if len(self._selectors) == 1:
      return self._selectors[0].sample(rng, n, training)
    chosen = rng.choice(len(self._shares), n, p=self._shares)
    starts = np.empty(n, np.int64)
    for index, selector in enumerate(self._selectors):
      indices = np.flatnonzero(chosen == index)
      if len(indices):
        starts[indices] = selector.sample(rng, len(indices), training)
    return starts

  def prioritize(self, addresses: np.ndarray, values: np.ndarray) -> None:
    """Sets priorities [n] at those of the addresses [n] that are stored."""
    if self._prioritized is not None:
      self._prioritized.prioritize(addresses, values)

  def priorities(self) -> dict[int, np.ndarray]:
    """Returns copies of the priorities, float32 [fill] by serial."""
    if self._prioritized is None:
      return {}
    return self._prioritized.priorities()
