"""Small environments that count, report or fail on request."""

import multiprocessing
import os
import signal
import sys
import time

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


class Counter(gymnasium.Env):
  """Observes its step count, the last action, a random number and its process.

  The level is an event: 'raise5' raises in step 5, 'exit5' ends the process,
  'leave5' by sys.exit in another folder and again when it is closed,
  'key5' as Ctrl-C does, 'kill5' kills it, 'end5' and
  'limit5' end the episode, 'hang5' never returns.
  'hang5of1' is for the second environment only. On construction 'broken'
  raises, 'brokenworker' raises in a worker process only, 'dies' ends a worker
  process, 'child' starts a process of its own.
  """

  _made = 0

  def __init__(self, level='', config=None):
    keys = 'count', 'acted', 'draw', 'pid', 'child'
    number = Box(-np.inf, np.inf, (), np.float64)
    self.observation_space = Dict(dict.fromkeys(keys, number))
    self.action_space = Discrete(3)
    level, _, only = level.partition('of')
    self._event = level.rstrip('0123456789')
    self._when = int(level[len(self._event) :] or 0)
    worker = multiprocessing.parent_process() is not None
    if only and self._number(worker) != int(only):
      self._when = 0
    if self._event == 'dies' and worker:
      os._exit(4)
    if self._event == 'broken' or (self._event == 'brokenworker' and worker):
      raise LookupError('no such level')
    self._child = None
    if self._event == 'child':
      context = multiprocessing.get_context('spawn')
      self._child = context.Process(target=time.sleep, args=(1000,))
      self._child.start()

  def _number(self, worker):
    """Returns the number of this environment, if three step together."""
    if worker:
      return int(multiprocessing.current_process().name.split()[-1])
    Counter._made += 1
    return 1 if Counter._made > 3 else Counter._made - 1

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
    if due and self._event == 'kill':
      os.kill(os.getpid(), signal.SIGKILL)
    if due and self._event == 'leave':
      os.chdir('/')
      sys.exit(5)
    if due and self._event == 'key':
      raise KeyboardInterrupt
    if due and self._event == 'hang':
      time.sleep(1000)
    info = {'log/half': self._count / 2} if self._count % 2 else {}
    info |= {'log/jax': float('jax' in sys.modules), 'other': object()}
    end, limit = due and self._event == 'end', due and self._event == 'limit'
    return self._obs(action), 1.0, end, limit, info

  def close(self):
    if self._event == 'leave':
      sys.exit(6)

  def _obs(self, action):
    return {
      'count': self._count,
      'acted': action,
      'draw': self.np_random.uniform(),
      'pid': os.getpid(),
      'child': self._child.pid if self._child else 0,
    }


class Shown(gymnasium.Env):
  """Episodes of 4 steps, which observe how often they were rendered.

  The picture is wider than high and brighter in each step; it is transparent.
  The level is an event of the third picture: 'raise', 'none', 'exit' or 'hang'.
  """

  def __init__(self, level='', config=None, render_mode=None):
    self.observation_space = Box(0, np.inf, (), np.float32)
    self.action_space = Discrete(2)
    self.render_mode = render_mode
    self._event = level
    self._step = self._rendered = 0

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._step = 0
    return np.float32(self._rendered), {}

  def step(self, action):
    self._step += 1
    return np.float32(self._rendered), 1.0, self._step == 4, False, {}

  def render(self):
    assert self.render_mode == 'rgb_array'
    self._rendered += 1
    if self._rendered == 3 and self._event != 'works':
      if self._event == 'exit':
        os._exit(3)
      if self._event == 'hang':
        time.sleep(1000)
      if self._event == 'none':
        return None
      raise LookupError('no screen')
    return np.full((256, 512, 4), 50 * self._step, np.uint8)


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
