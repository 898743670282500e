"""Crafter: open-world survival from images, with 22 achievements.

Task 'crafter_reward' rewards achievements and health; 'crafter_noreward' has
no rewards. Death is terminal, the limit of `length` steps is not.
"""

from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Dict, Discrete

from dreamer_tpu.envs import registry
from dreamer_tpu.envs.kinds import image_space, vector_space


class Crafter(gymnasium.Env):
  """Crafter as a Gymnasium environment.

  `log/achievement_NAME` counts the times it was achieved in this episode.

  Args:
    name: 'reward' or 'noreward'.
    config: size (height, width) of the image, length in steps.
  """

  def __init__(self, name: str, config: Any):
    import crafter
    from crafter import constants

    class Ordered(crafter.Env):
      """Sorts the objects, whose order as sets differs between runs."""

      def _balance_chunk(self, chunk, objs):
        super()._balance_chunk(chunk, sorted(objs, key=_position))

    def make(seed: int) -> Any:
      # Crafter's sizes are (width, height).
      size = (config.size[1], config.size[0])
      reward = name == 'reward'
      return Ordered(size=size, reward=reward, length=config.length, seed=seed)

    self._make = make
    self._env = make(0)
    self._achievements = list(constants.achievements)
    observed = {'image': image_space((*config.size, 3))}
    for achievement in self._achievements:
      observed[f'log/achievement_{achievement}'] = vector_space(())
    self.observation_space = Dict(observed)
    self.action_space = Discrete(len(constants.actions))

  def reset(self, *, seed=None, options=None):
    """Starts an episode; a seed starts a new sequence of worlds."""
    super().reset(seed=seed)
    if seed is not None:
      self._env = self._make(seed)
    image = self._env.reset()
    return self._observation(image, {}), {}

  def step(self, action):
    """Steps the world."""
    image, reward, done, info = self._env.step(action)
    terminated = done and info['discount'] == 0
    obs = self._observation(image, info['achievements'])
    return obs, reward, terminated, done and not terminated, {}

  def _observation(self, image: np.ndarray, achievements: dict) -> dict:
    counts = {
      f'log/achievement_{name}': np.float32(achievements.get(name, 0))
      for name in self._achievements
    }
    return {'image': image, **counts}


def _position(thing: Any) -> tuple[int, ...]:
  return tuple(thing.pos)


def names(name: str, config: Any) -> Iterable[str]:
  """Returns the two tasks."""
  del name, config
  return ('reward', 'noreward')


SUITE = registry.Suite(make=Crafter, names=names, package='crafter')
