"""Dummy: every kind of observation at no cost, to measure the rest of a run.

'dummy_disc' has discrete actions, 'dummy_cont' continuous ones. They change
nothing: every step has reward 1, and only `count`, the number of steps so far,
varies. Episodes end after `length` steps, as terminal; 0 lets them go on.
"""

from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from dreamer_tpu.envs import registry
from dreamer_tpu.envs.kinds import image_space, vector_space

ACTIONS: dict[str, gymnasium.Space] = {
  'disc': Dict(act_disc=Discrete(5)),
  'cont': Dict(act_cont=Box(-1, 1, (6,), np.float32)),
}


class Dummy(gymnasium.Env):
  """Environment without dynamics.

  Args:
    name: 'disc' or 'cont'.
    config: size (height, width) of the image, length in steps.
  """

  def __init__(self, name: str, config: Any):
    self.action_space = ACTIONS[name]
    self.observation_space = Dict(
      image=image_space((*config.size, 3)),
      vector=vector_space((7,)),
      token=Discrete(256),
      count=vector_space(()),
      float2d=vector_space((4, 5)),
      int2d=MultiDiscrete(np.full((2, 3), 4)),
    )
    self._length = config.length
    self._count = 0
    self._constant = dict(
      image=np.full((*config.size, 3), 255, np.uint8),
      vector=np.zeros(7, np.float32),
      token=np.int64(0),
      float2d=np.ones((4, 5), np.float32),
      int2d=np.ones((2, 3), np.int64),
    )

  def reset(self, *, seed=None, options=None):
    """Starts an episode."""
    super().reset(seed=seed)
    self._count = 0
    return self._observation(), {}

  def step(self, action):
    """Counts the step."""
    self._count += 1
    over = self._count == self._length
    return self._observation(), 1.0, over, False, {}

  def _observation(self) -> dict[str, Any]:
    constant = {key: value.copy() for key, value in self._constant.items()}
    return {**constant, 'count': np.float32(self._count)}


def names(name: str, config: Any) -> Iterable[str]:
  """Returns the two tasks."""
  del name, config
  return ACTIONS


SUITE = registry.Suite(make=Dummy, names=names, cheap=lambda name, config: True)
