"""Running statistics of scalar metrics between two logs."""

import threading
from collections.abc import Mapping


class Aggregator:
  """Collects scalars under their names and reduces each over time.

  The last part of a name chooses the reduction: `.../max`, `.../min`,
  `.../sum` and `.../last` do what they say, every other name is averaged.
  Adding from one thread while another takes the result is safe.
  """

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._values: dict[str, float] = {}
    self._counts: dict[str, int] = {}

  def add(self, metrics: Mapping[str, float], prefix: str = '') -> None:
    """Takes one observation of each metric.

    Args:
      metrics: Python or NumPy scalars by name, already on the host: a device
        array would stall the caller until it is computed.
      prefix: Put before each name with a slash, where it is not empty.
    """
    with self._lock:
      for name, value in metrics.items():
        self._add(f'{prefix}/{name}' if prefix else name, float(value))

  def result(self, reset: bool = True) -> dict[str, float]:
    """Returns the reduced value of each name, and starts over by default."""
    with self._lock:
      result = {
        name: value / self._counts[name]
        if _reduction(name) == 'mean'
        else value
        for name, value in self._values.items()
      }
      if reset:
        self._values.clear()
        self._counts.clear()
      return result

  def _add(self, name: str, value: float) -> None:
    self._counts[name] = self._counts.get(name, 0) + 1
    if name not in self._values:
      self._values[name] = value
      return
    old = self._values[name]
    match _reduction(name):
      case 'max':
        self._values[name] = _pick(max, old, value)
      case 'min':
        self._values[name] = _pick(min, old, value)
      case 'last':
        self._values[name] = value
      case _:
        self._values[name] = old + value


def _reduction(name: str) -> str:
  last = name.rpartition('/')[2]
  return last if last in ('max', 'min', 'sum', 'last') else 'mean'


def _pick(function, old: float, new: float) -> float:
  """The maximum or minimum, in which a NaN is never hidden by a number."""
  return old + new if old != old or new != new else function(old, new)
