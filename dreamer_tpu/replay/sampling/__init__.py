"""Distributions over sequences."""

import math
from typing import NamedTuple


class Sampling(NamedTuple):
  """Distribution over sequences.

  Attributes:
    uniform, priority, recency: Shares of the draws; they add up to 1.
    exponent: Exponent of priorities.
    maxfrac: Share of a sequence's largest priority in its weight; the rest is
      the mean.
    initial: Priority of new steps.
    zero_on_sample: Whether the steps of a drawn sequence get priority 0.
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
