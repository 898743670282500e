"""The environment of one player."""

import os

from minerl.env.world import World

try:
  import gym
except ModuleNotFoundError:
  import gymnasium as gym


class _SingleAgentEnv(gym.Env):
  """An environment with the calls of the old gym.

  STANDIN_MINERL_LOST is the number of steps until the connection is lost.
  """

  def __init__(self, env_spec, instances=None, is_fault_tolerant=True):
    self.task = env_spec
    self.observation_space = self.task.observation_space
    self.action_space = self.task.action_space
    self._seed = None
    self._left = int(os.environ.get('STANDIN_MINERL_LOST', 10**9))

  def seed(self, seed=None, seed_spaces=True):
    assert isinstance(seed, int) or seed is None, 'Seed must be an int!'
    self._seed = seed

  def reset(self):
    try:
      self.task.reset()
      self.observation_space = self.task.observation_space
      self.action_space = self.task.action_space
      pov = self.observation_space['pov'].shape
      self._world = World(self.task.to_xml(), self._seed, pov)
      self.done = False
      return self._observation()
    finally:
      self._seed = None

  def step(self, action):
    if self.done:
      raise RuntimeError(
        'Attempted to step an environment server with done=True'
      )
    self._left -= 1
    if self._left < 0:
      self.done = True
      info = {'error': 'Connection timed out!'}
      return self.observation_space.sample(), 0, self.done, info
    for handler in self.task.actionables:
      if handler.to_string() in action:
        command = handler.to_hero(action[handler.to_string()])
        self._world.command(command)
    self._world.tick()
    self.done = self._world.life <= 0
    monitors = {}
    return self._observation(), 0.0, self.done, monitors

  def close(self):
    self.done = True

  def _observation(self):
    info = self._world.info()
    return {x.to_string(): x.from_hero(info) for x in self.task.observables}
