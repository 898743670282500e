"""Number of updates due for a number of environment steps."""

import math
from typing import Any

from dreamer_tpu.config import flatten

# The configuration keys that determine when updates are due.
KEYS = ('batch_size', 'batch_length', 'run.train_ratio', 'run.envs')


class Ratio:
  """Turns environment steps into updates without drift.

  `steps * ratio / batch_steps` updates are due in total, rounded down. Only the
  steps of calls count: make none while training is paused or the replay fills.
  The first call returns one update: make it when the replay holds the first
  batch.

  Args:
    ratio: Replayed steps per environment step (`run.train_ratio`); 0 disables
      training.
    batch_steps: Steps per update: batch_size * batch_length.
  """

  def __init__(self, ratio: float, batch_steps: int) -> None:
    self._ratio = ratio
    self._batch_steps = batch_steps
    self._steps: int | None = None  # Since the first call or the resume.
    self._carry = 0.0  # Fraction of an update that was due then.
    self._done = 0

  def __call__(self, steps: int) -> int:
    """Returns the number of updates due for new steps.

    Args:
      steps: Agent steps since the last call, over all hosts.
    """
    if not self._ratio:
      return 0
    if self._steps is None:
      self._steps = 0
      return 1
    self._steps += steps
    # A rounding error must not delay an update.
    due = math.floor(self._total() + 1e-9) - self._done
    self._done += due
    return due

  def state(self) -> dict[str, Any]:
    """Returns the state as JSON values."""
    return {'steps': self._steps, 'carry': [self._total() - self._done, 1]}

  def load(self, state: dict[str, Any]) -> None:
    """Resumes from a state, which may come from a run with another ratio."""
    part, whole = state['carry']
    self._steps = None if state['steps'] is None else 0
    self._carry, self._done = part / whole, 0

  def _total(self) -> float:
    return self._carry + (self._steps or 0) * self._ratio / self._batch_steps


def same_pace(config: Any, saved: Any) -> bool:
  """Returns whether two configurations have updates due at the same steps."""
  new, old = flatten(config), flatten(saved)
  return all(new[key] == old.get(key) for key in KEYS)


def describe_pace(config: Any, saved: Any) -> str:
  """Returns a line with the pace of a run and that before it was resumed."""
  return f'Updates: {_pace(config)} from now on, before {_pace(saved)}.'


def _pace(config: Any) -> str:
  values = flatten(config)
  if not values['run.train_ratio']:
    return 'none'
  batch = values['batch_size'] * values['batch_length']
  steps = batch / values['run.train_ratio']
  envs = values['run.envs']
  return f'one per {steps:.3g} steps of {envs} environments'
