"""A stand-in for the Python module of DeepMind Lab.

Reproduces docs/users/python_api.md and python/dmlab_module.c of its repository:
arguments and their errors, the order of calls, names, shapes and dtypes of the
observations and actions that the suite uses, and settings. The levels are not
games: an episode has 5 seconds, moving forward is rewarded, and firing ends the
episode in levels of psychlab.
"""

import numpy as np

_BOUNDS = {
  'LOOK_LEFT_RIGHT_PIXELS_PER_FRAME': (-512, 512),
  'LOOK_DOWN_UP_PIXELS_PER_FRAME': (-512, 512),
  'STRAFE_LEFT_RIGHT': (-1, 1),
  'MOVE_BACK_FORWARD': (-1, 1),
  'FIRE': (0, 1),
  'JUMP': (0, 1),
  'CROUCH': (0, 1),
}
_FPS, _SECONDS = 60, 5
_CLOSED, _UNINITIALIZED, _RUNNING, _TERMINATED = range(4)

INSTRUCTIONS = 'Pick the red object in the blue room.', 'Get the hat, quickly!'


class Lab:
  """An environment; see `class deepmind_lab.Lab` of the documentation."""

  def __init__(
    self,
    level,
    observations,
    config=None,
    renderer='software',
    level_cache=None,
    temp_folder='',
  ):
    self._status = _CLOSED
    config = {} if config is None else config
    for number, value, kind in (
      (1, level, str),
      (2, observations, list),
      (3, config, dict),
    ):
      if not isinstance(value, kind):
        name, given = kind.__name__, type(value).__name__
        raise TypeError(f'argument {number} must be {name}, not {given}')
    if renderer not in ('software', 'hardware'):
      raise RuntimeError(
        'Failed to set renderer must be "hardware" or "software" actual '
        f'"{renderer}"!'
      )
    for pair in config.items():
      if not all(isinstance(x, str) for x in pair):
        raise TypeError('bad argument type for built-in operation')
    if not level.startswith('contributed/dmlab30/'):
      raise RuntimeError(
        f'Failed to init environment - "Level not found: {level}"'
      )
    self.level, self.config = level, dict(config)
    self._height = int(config.get('height', 240))
    self._width = int(config.get('width', 320))
    known = {spec['name'] for spec in self.observation_spec()}
    for name in observations:
      if name not in known:
        raise ValueError(f"Unknown observation '{name}'.")
    self._names = observations
    self._episode = self._frames = self._asked = 0
    self._status = _UNINITIALIZED

  def reset(self, episode=-1, seed=None):
    """Starts an episode; the next one by default."""
    if self._status == _CLOSED:
      raise RuntimeError('Failed to start environment - "closed"')
    if seed is None:
      seed = int(np.random.default_rng().integers(2**31))
    elif not isinstance(seed, int):
      given = type(seed).__name__
      raise ValueError(f"'seed' must be int or None, was '{given}'.")
    if episode >= 0:
      self._episode = episode
    self._random = np.random.RandomState(seed)
    self._color = self._random.randint(256, size=3)
    self._text = INSTRUCTIONS[seed % 2]
    self._frames = self._asked = 0
    self._status = _RUNNING
    self._episode += 1
    return True

  def num_steps(self):
    """Returns the number of frames since the reset."""
    return self._asked

  def is_running(self):
    """Returns whether an episode is running."""
    return self._status == _RUNNING

  def step(self, action, num_steps=1):
    """Advances a number of frames; returns the reward of all."""
    if not isinstance(action, np.ndarray):
      given = type(action).__name__
      raise TypeError(f'argument 1 must be numpy.ndarray, not {given}')
    if self._status != _RUNNING:
      raise RuntimeError('Environment in wrong status to advance.')
    if action.shape != (len(_BOUNDS),):
      raise ValueError(f'action must have shape ({len(_BOUNDS)})')
    if action.dtype != np.intc:
      raise ValueError('action must have dtype np.intc')
    self._asked += num_steps
    reward = 0.0
    for _ in range(num_steps):
      self._frames += 1
      reward += float(action[3]) + self._random.uniform()
      self._color = (self._color + action[0]) % 256
      fired = 'psychlab' in self.level and action[4]
      if fired or self._frames >= _FPS * _SECONDS:
        self._status = _TERMINATED
        break
    return reward

  def observation_spec(self):
    """Returns the available observations."""
    shape = self._height, self._width, 3
    one, three = (1,), (3,)
    return [
      {'name': 'RGB_INTERLEAVED', 'shape': shape, 'dtype': np.uint8},
      {'name': 'RGB', 'shape': shape[2:] + shape[:2], 'dtype': np.uint8},
      {'name': 'VEL.TRANS', 'shape': three, 'dtype': np.float64},
      {'name': 'INSTR', 'shape': (), 'dtype': str},
      {'name': 'FRAMES_REMAINING_AT_60', 'shape': one, 'dtype': np.float64},
    ]

  def action_spec(self):
    """Returns the bounds of the actions."""
    return [
      {'min': low, 'max': high, 'name': name}
      for name, (low, high) in _BOUNDS.items()
    ]

  def observations(self):
    """Returns the observations that were asked for, by name."""
    if self._status != _RUNNING:
      raise RuntimeError(
        'Environment in wrong status for call to observations()'
      )
    image = np.zeros((self._height, self._width, 3), np.uint8)
    image[...] = self._color
    left = _FPS * _SECONDS - self._frames
    text = self._text if 'language' in self.level else ''
    everything = {
      'RGB_INTERLEAVED': image,
      'RGB': np.ascontiguousarray(image.transpose(2, 0, 1)),
      'VEL.TRANS': np.zeros(3),
      'INSTR': text,
      'FRAMES_REMAINING_AT_60': np.array([left * 60.0 / _FPS]),
    }
    return {name: everything[name] for name in self._names}

  def events(self):
    """Returns the events since the last step."""
    return []

  def close(self):
    """Frees the engine."""
    self._status = _CLOSED
    return True
