"""Small environments, named 'gym_tests.helpers.toys:NAME'."""

import multiprocessing
import os
import signal
import threading
import time

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


class Breaks(gymnasium.Env):
  """Raises in every step from the 150th on; episodes of 10 steps."""

  observation_space = gymnasium.spaces.Box(-1, 1, (3,))
  action_space = gymnasium.spaces.Discrete(2)
  _total = 0

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._step = 0
    return np.zeros(3, np.float32), {}

  def step(self, action):
    self._step += 1
    Breaks._total += 1
    if Breaks._total >= 150:
      raise ConnectionResetError('the simulator is gone')
    return np.zeros(3, np.float32), 1.0, self._step == 10, False, {}


gymnasium.register('Breaks-v0', Breaks)


class ThreeMoves(gymnasium.Wrapper):
  """CartPole with a third move, which does nothing."""

  def __init__(self):
    super().__init__(gymnasium.make('CartPole-v1'))
    self.action_space = gymnasium.spaces.Discrete(3)

  def step(self, action):
    return self.env.step(int(action) % 2)


gymnasium.register('ThreeMoves-v0', ThreeMoves)


class Resized(gymnasium.Env):
  """Observes as many numbers as TOYS_SIZE says."""

  action_space = gymnasium.spaces.Discrete(2)

  def __init__(self):
    size = int(os.environ['TOYS_SIZE'])
    self.observation_space = gymnasium.spaces.Box(-1, 1, (size,))


gymnasium.register('Resized-v0', Resized)


class Simulator(gymnasium.Env):
  """Episodes of 3 steps; observes what sensors see, and the state behind it."""

  observation_space = gymnasium.spaces.Dict(
    {
      'sensors': gymnasium.spaces.Box(-1, 1, (3,)),
      'state': gymnasium.spaces.Box(-1, 1, (5,)),
    }
  )
  action_space = gymnasium.spaces.Discrete(2)

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._step = 0
    return self._obs(), {}

  def step(self, action):
    self._step += 1
    return self._obs(), 1.0, self._step == 3, False, {}

  def _obs(self):
    value = np.float32(self._step / 3)
    return {'sensors': np.full(3, value), 'state': np.full(5, value)}


gymnasium.register('Simulator-v0', Simulator)


class Stays(Breaks):
  """Has a thread and a process that do not end; it cannot be closed.

  Its first step waits for the file STAYS_UNTIL, and raises.
  """

  def __init__(self):
    threading.Thread(target=time.sleep, args=(1000,)).start()
    context = multiprocessing.get_context('spawn')
    context.Process(target=time.sleep, args=(1000,)).start()

  def step(self, action):
    while not os.path.exists(os.environ['STAYS_UNTIL']):
      time.sleep(0.01)
    raise ConnectionResetError('the simulator is gone')

  def close(self):
    raise RuntimeError('stays')


gymnasium.register('Stays-v0', Stays)
