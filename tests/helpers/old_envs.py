"""Environments for the gym package before version 0.26, in an old Python."""

import os
import time

import gym
import numpy as np
from gym.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple


class Word(gym.Space):
  """A space of a kind that no agent can take."""


class Nested(gym.Env):
  """Observes the action and a random number in spaces of all kinds."""

  observation_space = Dict(
    image=Box(0, 255, (24, 32, 3), np.uint8),
    inner=Dict(square=Discrete(5), switches=MultiBinary(3)),
    pair=Tuple((Box(-9.0, 9.0, (2,)), MultiDiscrete([2, 3]))),
    word=Word(),
  )
  action_space = Dict(go=Discrete(3), push=Box(-2.0, 2.0, (2,)))

  def seed(self, seed=None):
    self._random = np.random.RandomState(seed)

  def reset(self):
    self._count = 0
    return self._obs({'go': 0, 'push': np.zeros(2, np.float32)})

  def step(self, action):
    assert self.action_space.contains(action), action
    self._count += 1
    info = {'log/count': self._count, 'other': object()}
    return self._obs(action), np.float64(1.5), self._count == 4, info

  def _obs(self, action):
    number = self._random.randint(256)
    return {
      'image': np.full((24, 32, 3), number, np.uint8),
      'inner': {'square': action['go'], 'switches': np.array([1, 0, 1])},
      'pair': (action['push'].astype(np.float64), np.array([1, number % 3])),
      'word': object(),
    }


class Fragile(gym.Wrapper):
  """CartPole with an event, 'exit30' or 'hang30', in step 30 of all.

  Only the environment with the number 0 has it.
  """

  def __init__(self, event):
    super().__init__(gym.make('CartPole-v1'))
    self._event = event.rstrip('0123456789')
    self._left = int(event[len(self._event) :])
    self._left += 10**9 * (os.environ['DREAMER_ENV_INDEX'] != '0')

  def step(self, action):
    self._left -= 1
    if not self._left and self._event == 'exit':
      os._exit(3)
    if not self._left:
      time.sleep(1000)
    return self.env.step(action)


gym.register('Nested-v0', entry_point=Nested)
gym.register('Limited-v0', entry_point=Nested, max_episode_steps=3)
gym.register('Fragile-v0', entry_point=Fragile)
