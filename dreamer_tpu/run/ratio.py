"""Number of updates due for a number of environment steps."""

import math
from typing import Any


class Ratio:
  """Turns environment steps into updates without drift.

  `steps * ratio / batch_steps` updates are due in total, rounded down. Counting
  starts at the first call, which returns one update: make it when the replay
  holds the first batch. Earlier steps do not count, as in the public
  implementation.

  Args:
    ratio: Replayed steps per environment step (`run.train_ratio`); 0 disables
      training.
    batch_steps: Steps per update: batch_size * batch_length.
  """

  def __init__(self, ratio: float, batch_steps: int) -> None:
    self._ratio = ratio
    self._batch_steps = batch_steps
    self._start: int | None = None  # Steps at the first call or resume.
    self._carry = 0.0  # Fraction of an update that was due at the start.
    self._last = self._done = 0

  def __call__(self, steps: int) -> int:
    """Returns the number of updates due since the last call.

    Args:
      steps: Agent steps so far, over all hosts.
    """
    if not self._ratio:
      return 0
    if self._start is None:
      self._start = self._last = steps
      return 1
    if steps < self._last:
      raise ValueError(f'steps decreased from {self._last} to {steps}')
    self._last = steps
    # A rounding error must not delay an update.
    due = math.floor(self._total() + 1e-9) - self._done
    self._done += due
    return due

  def state(self) -> dict[str, Any]:
    """Returns the state as JSON values."""
    carry = 0.0 if self._start is None else self._total() - self._done
    last = None if self._start is None else self._last
    return {'steps': last, 'carry': [carry, 1]}

  def load(self, state: dict[str, Any]) -> None:
    """Resumes from a state, which may come from a run with another ratio."""
    part, whole = state['carry']
    self._start, self._last = state['steps'], state['steps'] or 0
    self._carry, self._done = part / whole, 0

  def _total(self) -> float:
    elapsed = self._last - (self._start or 0)
    return self._carry + elapsed * self._ratio / self._batch_steps
