"""A sound environment, and the same with one fault each."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv


class Faulty(gymnasium.Env):
  """Counts frames and draws numbers; the level names its fault.

  The level 'sound' has none. Episodes end after `length` frames by a limit,
  or after `end` frames as terminal.
  """

  _shared = None  # Generator of all that have this fault.

  def __init__(self, level, config):
    high = 1.0 if level == 'bounds' else np.inf
    self.observation_space = Dict(
      frames=Box(0, high, (), np.float32), draw=Box(0, 1, (), np.float32)
    )
    self.action_space = Discrete(3)
    self._fault, self._config = level, config
    self._frames = self._steps = 0

  def reset(self, *, seed=None, options=None):
    super().reset(seed={'constant': 0, 'unseeded': None}.get(self._fault, seed))
    if self._fault == 'shared' and seed is not None:
      Faulty._shared = self.np_random
    self._frames = self._steps = 0
    return self._observation(), {}

  def step(self, action):
    config, fault, reward = self._config, self._fault, 0.0
    self._steps += 1
    for i in range(config.repeat):
      self._frames += 1
      gain = float(action) + self._frames % 5
      reward = gain if fault == 'unsummed' else reward + gain
      if i == 0 or fault != 'early':
        obs = self._observation()
      count = self._steps if fault == 'counted' else self._frames
      ended = 0 < config.end <= count
      cut = 0 < config.length <= count and fault != 'endless'
      if ended or cut:
        break
    if cut and fault == 'dropped':
      obs = self._observation() | {'frames': np.float32(0)}
    if fault == 'rendering':
      self.render()
    if fault == 'swapped':
      ended, cut = cut, ended
    return obs, reward, ended, cut, {}

  def render(self):
    return np.zeros((64, 64, 3), np.uint8)

  def _observation(self):
    kind = np.float64 if self._fault == 'type' else np.float32
    shared = self._fault == 'shared'
    draw = kind((Faulty._shared if shared else self.np_random).uniform())
    return {'frames': np.float32(self._frames), 'draw': draw}


class FaultyVector(SyncVectorEnv):
  """Several sound environments; the level names the fault of the resets."""

  def __init__(self, level, num_envs, config):
    lost = level == 'lost'
    mode = AutoresetMode.SAME_STEP if lost else AutoresetMode.NEXT_STEP
    makers = [lambda: Faulty('sound', config)] * num_envs
    super().__init__(makers, autoreset_mode=mode)
    self.metadata = {'autoreset_mode': AutoresetMode.NEXT_STEP}
    self._fault = level
    self._over = np.zeros(num_envs, bool)

  def step(self, actions):
    obs, reward, ended, cut, info = super().step(actions)
    if self._fault == 'paid':
      reward = np.where(self._over, 1.0, reward)
    self._over = ended | cut
    return obs, reward, ended, cut, info
