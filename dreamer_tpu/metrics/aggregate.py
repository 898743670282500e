"""Reduction of scalar metrics between two logs."""

import collections
import operator
import threading
from collections.abc import Mapping

import numpy as np

# By the last part of a name. NaN propagates.
_EXTREMES = {'max': np.maximum, 'min': np.minimum}


class Aggregator:
  """Reduces scalar metrics over time; thread-safe.

  Metrics named `.../max` or `.../min` keep their maximum or minimum, all
  others are averaged.
  """

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._values: dict[str, float] = {}
    self._counts: collections.Counter[str] = collections.Counter()

  def add(self, metrics: Mapping[str, float], prefix: str) -> None:
    """Adds one observation of each metric.

    Args:
      metrics: Python or NumPy scalars by name. Device arrays would block until
        they are computed.
      prefix: Prefix of the names, without the slash.
    """
    with self._lock:
      for name, value in metrics.items():
        name, value = f'{prefix}/{name}', float(value)
        if name in self._values:
          reduce = _EXTREMES.get(_last_part(name), operator.add)
          value = float(reduce(self._values[name], value))
        self._values[name] = value
        self._counts[name] += 1

  def take(self) -> dict[str, float]:
    """Returns the reduced metrics since the last call."""
    with self._lock:
      values, self._values = self._values, {}
      counts, self._counts = self._counts, collections.Counter()
    return {
      name: value if _last_part(name) in _EXTREMES else value / counts[name]
      for name, value in values.items()
    }


def _last_part(name: str) -> str:
  return name.rpartition('/')[2]
