"""A game whose rewards and observations name their episode, with faults.

Every environment takes a number of its own when it is first reset, from the
folder GAME. The score of an episode tells the environment, the episode and the
length: see `identify`. Observations are (environment, episode, step).

A file KIND.HOST in the folder GAME is a fault for the process of that number:
  raise, hang  The first environment that sees it takes it.
  broken       All environments raise as long as the file exists.
  clock        Seconds by which the clock of the process is wrong.
"""

import contextlib
import os
import pathlib
import time

import gymnasium
import numpy as np

FOLDER = pathlib.Path(os.environ.get('GAME', '/nowhere'))
HOST = os.environ.get('JAX_PROCESS_ID', '0')
_BITS = 12  # Of the environment's and of the episode's number.
_UNIT = 2.0 ** (-2 * _BITS)  # Makes both a fraction that float32 holds.


def length(episode):
  """Returns the length of an episode, (environment, episode)."""
  return 3 + hash(episode) % 10


def terminates(episode):
  """Returns whether an episode ends by itself, and not by a time limit."""
  return hash(episode) % 3 > 0


def reward(episode, step):
  """Returns the reward of a step; those of an episode add up to its score."""
  if step == 1:
    return ((episode[0] << _BITS) + episode[1]) * _UNIT
  return 1.0 if step else 0.0


def identify(score):
  """Returns the (environment, episode) of a score, and its length."""
  number = round(score % 1 / _UNIT)
  return (number >> _BITS, number & ((1 << _BITS) - 1)), int(score) + 1


class Ledger(gymnasium.Env):
  observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
  action_space = gymnasium.spaces.Discrete(3)

  def __init__(self):
    self._number = self._step = 0
    self._episode = -1

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._number = self._number or _new_number()
    self._obey()
    self._episode += 1
    self._step = 0
    return self._observe(), {}

  def step(self, action):
    time.sleep(float(os.environ.get('GAME_SLEEP', 0)))
    self._obey()
    self._step += 1
    episode = self._number, self._episode
    over, terminated = self._step == length(episode), terminates(episode)
    return (
      self._observe(),
      reward(episode, self._step),
      over and terminated,
      over and not terminated,
      {},
    )

  def _observe(self):
    return np.array([self._number, self._episode, self._step], np.float32)

  def _obey(self):
    if (FOLDER / f'broken.{HOST}').exists():
      raise ValueError('the game is broken')
    if _take('raise'):
      raise ConnectionResetError('the game was asked to raise')
    if _take('hang'):
      time.sleep(10_000)


def _new_number():
  folder = FOLDER / 'numbers'
  folder.mkdir(parents=True, exist_ok=True)
  number = len(list(folder.iterdir()))
  while True:
    number += 1
    with contextlib.suppress(FileExistsError):
      (folder / str(number)).touch(exist_ok=False)
      return number


def _take(kind):
  with contextlib.suppress(FileNotFoundError):
    (FOLDER / f'{kind}.{HOST}').rename(FOLDER / f'{kind}.taken')
    return True
  return False


def _wrong(clock, unit):
  """Returns a clock that is wrong by the seconds in the file."""
  path = FOLDER / f'clock.{HOST}'

  def read():
    with contextlib.suppress(OSError, ValueError):
      return clock() + int(path.read_text()) * unit
    return clock()

  return read


if FOLDER.exists():
  time.time, time.time_ns = _wrong(time.time, 1), _wrong(time.time_ns, 10**9)

gymnasium.register('Ledger-v0', Ledger)
