"""Spaces, on those of the old gym where it is installed."""

from collections import OrderedDict

import numpy as np

try:
  import gym
except ModuleNotFoundError:
  import gymnasium as gym


class Box(gym.spaces.Box):
  """Numbers with bounds."""

  def __init__(self, *args, normalizer_scale='linear', **kwargs):
    assert normalizer_scale in ('linear', 'log')
    super().__init__(*args, **kwargs)


class Discrete(gym.spaces.Discrete):
  """Numbers from 0."""


class Enum(Discrete):
  """Names, sorted; a value is a name."""

  def __init__(self, *values, default=None):
    self.default = default if default is not None else values[0]
    super().__init__(len(values))
    self.values = np.array(sorted(values))
    self.value_map = dict(zip(self.values, range(len(values))))  # noqa: B905

  def sample(self, bs=None):
    """Returns a random name."""
    return self.values[super().sample()]

  def contains(self, x):
    """Returns whether it is a name."""
    return x in self.values

  __contains__ = contains


class Dict(gym.spaces.Dict):
  """Spaces by name."""

  def sample(self, bs=None):
    """Returns a random value of each."""
    return OrderedDict((k, space.sample()) for k, space in self.spaces.items())
