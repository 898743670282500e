"""Wrappers that every environment of every suite gets.

They have the spaces of `conversion.Conversion`, and check every value that an
environment returns.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Dict

from dreamer_tpu.envs.conversion import DEFAULT, Conversion, Rules
from dreamer_tpu.envs.observations import LOG
from dreamer_tpu.envs.restarting import RESTARTED
from dreamer_tpu.envs.vector import TERMINAL
from dreamer_tpu.errors import UserError

_LARGEST = float(np.finfo(np.float32).max)  # As rewards are stored.

_RESET = ('observation', 'info')
_STEP = ('observation', 'reward', 'terminated', 'truncated', 'info')


class Converted(gymnasium.Wrapper):
  """An environment with flat Dict spaces of the kinds of the agent.

  Rewards are floats, and infos have only log/... scalars. A value that does not
  fit raises a UserError.

  Args:
    env: Any Gymnasium environment.
    rules: Options of the conversion.

  Attributes:
    conversion: Conversion of its spaces.

  Raises:
    UserError: The agent cannot take a space.
  """

  def __init__(self, env: gymnasium.Env, rules: Rules = DEFAULT):
    super().__init__(env)
    spaces = env.observation_space, env.action_space
    self.conversion = Conversion(*spaces, rules)
    self.observation_space = Dict(self.conversion.obs_space)
    self.action_space = Dict(self.conversion.act_space)

  def reset(self, *, seed=None, options=None):
    """Starts an episode."""
    result = self.env.reset(seed=seed, options=options)
    obs, info = _unpack('reset', result, _RESET)
    return self.conversion.observation(obs), self._logs(info)

  def step(self, action):
    """Takes a step with an action of the agent."""
    action = self.conversion.action(action)
    result = self.env.step(action)
    obs, reward, terminated, truncated, info = _unpack('step', result, _STEP)
    reward = _scalar('the reward', reward)
    if not abs(reward) <= _LARGEST:  # False for NaN.
      raise UserError(f'the reward is {reward}, not a finite float32')
    over = bool(_scalar("'terminated'", terminated))
    cut = bool(_scalar("'truncated'", truncated))
    obs = self.conversion.observation(obs)
    return obs, reward, over, cut, self._logs(info)

  def _logs(self, info: Any) -> dict[str, float]:
    if not isinstance(info, Mapping):
      return {}
    return {
      name: value
      for name, given in info.items()
      if isinstance(name, str)
      and name.startswith(LOG)
      and name not in self.conversion.obs_space
      and (value := _number(given)) is not None
    }


class ConvertedVector(gymnasium.vector.VectorWrapper):
  """A vector environment with the spaces of `Converted`.

  Args:
    env: Any vector environment.
    rules: Options of the conversion.

  Attributes:
    conversion: Conversion of the spaces of one environment.
  """

  def __init__(self, env: Any, rules: Rules = DEFAULT):
    super().__init__(env)
    spaces = env.single_observation_space, env.single_action_space
    self.conversion = Conversion(*spaces, rules)
    self.single_observation_space = Dict(self.conversion.obs_space)
    self.single_action_space = Dict(self.conversion.act_space)

  def reset(self, *, seed=None, options=None):
    """Starts an episode of each environment."""
    obs, info = self.env.reset(seed=seed, options=options)
    return self._observation(obs), self._logs(info)

  def _logs(self, info: Any) -> dict[str, np.ndarray]:
    """Returns log/... numbers [N], and bool [N] by the names of Gymnasium."""
    result: dict[str, np.ndarray] = {}
    for name, value in info.items() if isinstance(info, Mapping) else ():
      if name in (TERMINAL, RESTARTED) or str(name).startswith(f'_{LOG}'):
        dtype: Any = bool
      elif str(name).startswith(LOG):
        dtype = np.float32
      else:
        continue
      with contextlib.suppress(ValueError, TypeError, OverflowError):
        result[str(name)] = np.asarray(value, dtype).reshape(self.num_envs)
    return result

  def step(self, actions):
    """Takes a step of each environment."""
    actions = self.conversion.action(actions, 1)
    obs, reward, terminated, truncated, info = self.env.step(actions)
    reward, over, cut = (
      np.asarray(x, dtype).reshape(self.num_envs)
      for x, dtype in ((reward, float), (terminated, bool), (truncated, bool))
    )
    fits = np.abs(reward) <= _LARGEST
    if not fits.all():
      raise UserError(f'the reward is {reward[~fits][0]}, not a finite float32')
    return self._observation(obs), reward, over, cut, self._logs(info)

  def _observation(self, obs: Any) -> dict[str, np.ndarray]:
    # Copied, as an environment may write the next ones into the same arrays.
    seen = self.conversion.observation(obs, 1)
    return {key: np.array(value) for key, value in seen.items()}


class FirstSeed(gymnasium.vector.VectorWrapper):
  """Hands a vector environment one seed, which it derives the others from."""

  def reset(self, *, seed=None, options=None):
    """Starts an episode of each environment; `seed` is None or a list."""
    return self.env.reset(seed=seed[0] if seed else None, options=options)


def _unpack(method: str, result: Any, names: tuple[str, ...]) -> Any:
  """Returns the parts of what an environment returned."""
  if isinstance(result, (tuple, list)) and len(result) == len(names):
    return result
  given = type(result).__name__
  if isinstance(result, tuple):
    given = f'{len(result)} values'
  raise UserError(
    f'{method}() returned {given} instead of ({", ".join(names)}), as '
    "Gymnasium's environments do; wrap one of the old Gym interface, for "
    'example by shimmy.GymV21CompatibilityV0'
  )


def _scalar(name: str, value: Any) -> float:
  """Returns a number or an array of one element as a float."""
  if isinstance(value, (float, bool)):
    return float(value)
  number = _number(value)
  if number is None:
    shape = f' of shape {np.shape(value)}' if np.ndim(value) else ''
    raise UserError(
      f'{name} is {type(value).__name__}{shape} {str(value)[:50]!r}; '
      'it must be one number'
    )
  return number


def _number(value: Any) -> float | None:
  """Returns a number or an array of one element as a float, None for others."""
  with contextlib.suppress(ValueError, TypeError, OverflowError):
    array = np.asarray(value)
    # Decimals and fractions are objects.
    if array.size == 1 and array.dtype.kind in 'biufO':
      return float(array.item())
  return None
