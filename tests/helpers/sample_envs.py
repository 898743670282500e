"""Small environments that count, report or fail on request."""

import multiprocessing
import os
import sys
import time

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


class Counter(gymnasium.Env):
  """Observes its step count, the last action, a random number and its process.

  The level is an event: 'raise5' raises in step 5, 'exit5' ends the process,
  'end5' and 'limit5' end the episode, 'hang5' never returns. On construction
  'broken' raises, 'brokenworker' raises in a worker process only, 'dies' ends a
  worker process.
  """

  def __init__(self, level='', config=None):
    self.observation_space = Dict(
      count=Box(-np.inf, np.inf, (), np.float64),
      acted=Box(-np.inf, np.inf, (), np.float64),
      draw=Box(-np.inf, np.inf, (), np.float64),
      pid=Box(-np.inf, np.inf, (), np.float64),
    )
    self.action_space = Discrete(3)
    self._event = level.rstrip('0123456789')
    self._when = int(level[len(self._event) :] or 0)
    if self._event == 'dies' and multiprocessing.parent_process():
      os._exit(4)
    in_worker = multiprocessing.parent_process() is not None
    if self._event == 'broken' or (self._event == 'brokenworker' and in_worker):
      raise LookupError('no such level')

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._count = 0
    return self._obs(-1), {}

  def step(self, action):
    self._count += 1
    due = self._count == self._when
    if due and self._event == 'raise':
      raise ZeroDivisionError('a bug in the environment')
    if due and self._event == 'exit':
      os._exit(3)
    if due and self._event == 'hang':
      time.sleep(1000)
    info = {'log/half': self._count / 2} if self._count % 2 else {}
    info |= {'log/jax': float('jax' in sys.modules), 'other': object()}
    end, limit = due and self._event == 'end', due and self._event == 'limit'
    return self._obs(action), 1.0, end, limit, info

  def _obs(self, action):
    return {
      'count': self._count,
      'acted': action,
      'draw': self.np_random.uniform(),
      'pid': os.getpid(),
    }


class Spaces(gymnasium.Env):
  """Returns `obs` for the given spaces; keeps the last action."""

  def __init__(self, obs_space, act_space, obs=None):
    self.observation_space = obs_space
    self.action_space = act_space
    self.obs = obs_space.sample() if obs is None else obs
    self.action = None

  def reset(self, *, seed=None, options=None):
    return self.obs, {}

  def step(self, action):
    self.action = action
    return self.obs, 0.0, False, False, {}
