"""Small environments, named 'gym_tests.helpers.toys:NAME'."""

import os
import signal

import gymnasium
import numpy as np


class Pictures(gymnasium.Env):
  """Episodes of 3 steps with a reward of 1; the image shows the step.

  With `signals`, the process receives SIGTERM in the fourth episode.
  """

  observation_space = gymnasium.spaces.Box(0, 255, (48, 48, 3), np.uint8)
  action_space = gymnasium.spaces.Discrete(2)

  def __init__(self, signals=False):
    self._signals = signals
    self._episode = 0

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._step = 0
    self._episode += 1
    if self._signals and self._episode == 4:
      os.kill(os.getpid(), signal.SIGTERM)
    return self._obs(), {}

  def step(self, action):
    self._step += 1
    return self._obs(), 1.0, self._step == 3, False, {}

  def _obs(self):
    return np.full((48, 48, 3), 80 * self._step, np.uint8)


gymnasium.register('Pictures-v0', Pictures)
gymnasium.register('Signals-v0', Pictures, kwargs={'signals': True})
