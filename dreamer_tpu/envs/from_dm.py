"""Environments of dm_env through the interface of Gymnasium."""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Text, Tuple


class FromDM(gymnasium.Env):
  """An environment of dm_env as a Gymnasium environment.

  An episode that ends with a discount of 0 is terminated, any other truncated.

  Args:
    env: A `dm_env.Environment`.
    repeat: Steps per action, whose rewards are added.
    reseed: Function of the environment and a seed. It returns the environment
      to use from then on, this or another one, which depends on the seed alone.
      By default a seed has no effect.

  Attributes:
    dm: The environment in use.
  """

  def __init__(
    self,
    env: Any,
    repeat: int = 1,
    reseed: Callable[[Any, int], Any] | None = None,
  ):
    self.dm = env
    self._repeat = repeat
    self._reseed = reseed
    self.observation_space = to_space(env.observation_spec())
    self.action_space = to_space(env.action_spec())

  def reset(self, *, seed=None, options=None):
    """Starts an episode."""
    super().reset(seed=seed)
    if seed is not None and self._reseed:
      self.dm = self._reseed(self.dm, seed)
    return self._observation(self.dm.reset()), {}

  def step(self, action):
    """Takes `repeat` steps, fewer if the episode ends."""
    reward = 0.0
    for _ in range(self._repeat):
      timestep = self.dm.step(action)
      if timestep.reward is not None:
        reward = reward + timestep.reward
      if timestep.last():
        break
    terminated = timestep.last() and timestep.discount == 0
    truncated = timestep.last() and not terminated
    return self._observation(timestep), reward, terminated, truncated, {}

  def close(self):
    """Closes the environment."""
    self.dm.close()

  def _observation(self, timestep: Any) -> Any:
    return timestep.observation


def to_space(spec: Any) -> gymnasium.Space:
  """Returns the space of a spec of dm_env, or of a nest of specs.

  The kind of a spec is told by its attributes, as packages have their own.
  """
  if isinstance(spec, Mapping):
    return Dict({key: to_space(child) for key, child in spec.items()})
  if isinstance(spec, (list, tuple)):
    return Tuple([to_space(child) for child in spec])
  dtype: Any = np.dtype(spec.dtype)
  if dtype.kind not in 'biuf':
    return Text(max_length=1000)
  if hasattr(spec, 'num_values'):
    return Discrete(int(spec.num_values), dtype=dtype.type)
  if hasattr(spec, 'minimum'):
    bounds = spec.minimum, spec.maximum
  elif dtype.kind == 'f':
    bounds = -np.inf, np.inf
  elif dtype.kind == 'b':
    bounds = False, True
  else:
    bounds = np.iinfo(dtype).min, np.iinfo(dtype).max
  low, high = (np.full(spec.shape, bound, dtype) for bound in bounds)
  return Box(low, high, dtype=dtype.type)
