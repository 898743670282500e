"""How many updates are due, from the number of environment steps."""

import math
from fractions import Fraction

from dreamer_tpu.errors import UserError


class Ratio:
  """Turns environment steps into updates, exactly, however long the run.

  One update replays `batch_steps` steps, so `env_steps * ratio / batch_steps`
  updates are due. What is left of an update is carried over as a fraction;
  nothing is rounded.

  The count starts with the first call, which asks for one update: call it
  from the moment that the replay holds a first batch. The steps before are
  not made up for, as in the public implementation.
  """

  def __init__(self, ratio: float, batch_steps: int) -> None:
    """Sets the rate.

    Args:
      ratio: Replayed steps per environment step (`run.train_ratio`); 0 never
        trains.
      batch_steps: Steps per update: batch_size * batch_length.

    Raises:
      UserError: If the ratio is negative or not finite.
    """
    if not (ratio >= 0 and math.isfinite(ratio)):
      raise UserError(
        f'run.train_ratio is {ratio}; it must be a number of at least 0'
      )
    # The decimal as it was written: 0.1 is a tenth here.
    rate = Fraction(str(ratio)) / batch_steps
    # Updates per step and updates carried over, both in units of 1 / unit.
    self._rate, self._unit = rate.numerator, rate.denominator
    self._carry = 0
    self._steps: int | None = None

  def __call__(self, env_steps: int) -> int:
    """Returns the updates due since the last call.

    Args:
      env_steps: All agent steps so far, over all hosts; never decreases.

    Returns:
      Number of updates to do now.

    Raises:
      ValueError: If `env_steps` is below that of an earlier call.
    """
    if not self._rate:
      return 0
    if self._steps is None:
      self._steps = int(env_steps)
      return 1
    if env_steps < self._steps:
      raise ValueError(f'{env_steps} env steps after {self._steps}')
    self._carry += (int(env_steps) - self._steps) * self._rate
    self._steps = int(env_steps)
    updates, self._carry = divmod(self._carry, self._unit)
    return updates

  def state(self) -> dict:
    """Returns the state as a JSON-able dict."""
    return {'steps': self._steps, 'carry': [self._carry, self._unit]}

  def load(self, state: dict) -> None:
    """Continues from `state`, also with another ratio than it was made with."""
    self._steps = state['steps']
    carry, unit = state['carry']
    common = math.lcm(unit, self._unit)
    self._carry = carry * (common // unit)
    self._rate *= common // self._unit
    self._unit = common
