"""Several selectors over the same starts, each with its share of the draws."""

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
  """How sequences are chosen.

  Attributes:
    uniform, priority, recency: Shares of the draws, which add up to 1.
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
  """The selectors that have a share."""

  def __init__(
    self,
    sampling: Sampling,
    chunks: Mapping[int, Chunk],
    chunksize: int,
    length: int,
  ) -> None:
    """Makes the selectors, empty; see `Prioritized` for the arguments."""
    self._shares: list[float] = []
    self._selectors: list[Selector] = []
    self.prioritized: Prioritized | None = None
    if sampling.uniform:
      self._add(sampling.uniform, Uniform(chunksize))
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
      self._add(sampling.priority, self.prioritized)
    if sampling.recency:
      self._add(sampling.recency, Recency(chunksize, sampling.recexp))

  def __len__(self) -> int:
    return len(self._selectors[0])

  def insert(self, starts: np.ndarray) -> None:
    """Adds starts, int64 [n]."""
    for selector in self._selectors:
      selector.insert(starts)

  def remove(self, serial: int) -> None:
    """Takes all starts of a chunk out."""
    for selector in self._selectors:
      selector.remove(serial)

  def sample(
    self, rng: np.random.Generator, n: int, mark: bool = True
  ) -> np.ndarray:
    """Returns n starts, int64 [n], each from a selector chosen by its share."""
    if len(self._selectors) == 1:
      return self._selectors[0].sample(rng, n, mark)
    total = sum(self._shares)
    shares = [share / total for share in self._shares]
    chosen = rng.choice(len(shares), n, p=shares)
    starts = np.empty(n, np.int64)
    for index, selector in enumerate(self._selectors):
      places = np.flatnonzero(chosen == index)
      if len(places):
        starts[places] = selector.sample(rng, len(places), mark)
    return starts

  def _add(self, share: float, selector: Selector) -> None:
    self._shares.append(share)
    self._selectors.append(selector)
