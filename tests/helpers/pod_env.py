"""A game of 20 steps that can fail on one host.

The environment variable POD_VICTIM names that host, 1 by default. Once the
file POD_FAULT exists, the victim obeys it: 'raise' or 'hang', or 'evaluation'
to raise in evaluations alone. POD_SLOW is the duration of its steps in seconds,
POD_CLOSE that of closing, and POD_CLOCK the error of its wall clock.
"""

import os
import pathlib
import time

import gymnasium
import numpy as np


class Game(gymnasium.Env):
  observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
  action_space = gymnasium.spaces.Discrete(3)

  def __init__(self, index=None, role=None):
    self._index = float(index)
    self._evaluates = role == 'eval'
    victim = os.environ.get('JAX_PROCESS_ID') == os.environ.get(
      'POD_VICTIM', '1'
    )
    if victim and 'POD_CLOCK' in os.environ:
      right, ahead = time.time, float(os.environ.pop('POD_CLOCK'))
      time.time = lambda: right() + ahead
    self._fault = pathlib.Path(os.environ.get('POD_FAULT', '/nowhere'))
    self._slow = float(os.environ.get('POD_SLOW', 0)) if victim else 0.0
    self._close = float(os.environ.get('POD_CLOSE', 0)) if victim else 0.0
    self._victim = victim
    self._step = 0

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._step = 0
    return self._observe(), {}

  def step(self, action):
    time.sleep(self._slow)
    if self._victim and self._fault.exists():
      fault = self._fault.read_text()
      if fault == 'raise' or (fault == 'evaluation' and self._evaluates):
        raise ValueError('the game is over')
      if fault == 'hang':
        time.sleep(10_000)
    self._step += 1
    info = {'log/index': self._index}
    return self._observe(), float(action), self._step == 20, False, info

  def render(self):
    return np.full((64, 64, 3), 10 * self._step, np.uint8)

  def close(self):
    time.sleep(self._close)

  def _observe(self):
    return self.np_random.uniform(-1, 1, 2).astype(np.float32)


gymnasium.register('Game-v0', Game)
