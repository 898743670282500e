"""Mixture of selectors, each with a share of the draws."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dreamer_tpu.replay.chunks import Chunk
from dreamer_tpu.replay.sampling.priority import Prioritized
from dreamer_tpu.replay.sampling.recency import Recency
from dreamer_tpu.replay.sampling.uniform import Uniform

Selector = Uniform | Prioritized | Recency


class Sampling(NamedTuple):
  """Distribution over sequences.

  Attributes:
    uniform, priority, recency: Shares of the draws; they add up to 1.
    exponent, maxfrac, initial, zero_on_sample: See `Prioritized`.
    recexp: Exponent of `Recency`.
  """

  uniform: float = 1.0
  priority: float = 0.0
  recency: float = 0.0
  exponent: float = 0.8
  maxfrac: float = 0.5
  initial: float = math.inf
  zero_on_sample: bool = True
  recexp: float = 1.0


class Mixture:
  """The selectors that have a share.

  Attributes:
    prioritized: The selector by priority, or None if it has no share.
  """

  def __init__(
    self,
    sampling: Sampling,
    chunks: Mapping[int, Chunk],
    chunksize: int,
    length: int,
  ) -> None:
    """Makes empty selectors; see `Prioritized` for the arguments."""
    self.prioritized: Prioritized | None = None
    selectors: list[tuple[float, Selector]] = []
    if sampling.uniform:
      selectors.append((sampling.uniform, Uniform(chunksize)))
    if sampling.priority:
      self.prioritized = Prioritized(
        chunks,
        chunksize,
        length,
        exponent=sampling.exponent,
        maxfrac=sampling.maxfrac,
        initial=sampling.initial,
        zero_on_sample=sampling.zero_on_sample,
      )
      selectors.append((sampling.priority, self.prioritized))
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
    if len(self._selectors) == 1:
      return self._selectors[0].sample(rng, n, training)
    chosen = rng.choice(len(self._shares), n, p=self._shares)
    starts = np.empty(n, np.int64)
    for index, selector in enumerate(self._selectors):
      indices = np.flatnonzero(chosen == index)
      if len(indices):
        starts[indices] = selector.sample(rng, len(indices), training)
    return starts
