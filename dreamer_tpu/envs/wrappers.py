"""Wrapper chain of every environment of every suite.

`wrap` returns an environment with the spaces of `conversion.py`, which checks
every value that it returns.
"""

import os
import traceback
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Dict

from dreamer_tpu.envs import conversion
from dreamer_tpu.errors import UserError


def wrap(env: gymnasium.Env, task: str, index: int = 0) -> gymnasium.Wrapper:
  """Returns the environment with flat Dict spaces of the agent's kinds.

  Args:
    env: Any Gymnasium environment.
    task: Name of the task, for messages.
    index: Number of the environment, for messages.

  Returns:
    An environment with the observation and action spaces of `conversion.py`,
    float rewards, and only log/... scalars in its infos. Its errors are
    one-line RuntimeErrors or UserErrors.

  Raises:
    UserError: The agent cannot take a space.
  """
  try:
    acting = _DictAction(env)
    wrapped = _DictObservation(acting, index)
    conversion.check_names(wrapped.spaces, acting.spaces)
  except UserError as error:
    raise UserError(f'task {task}: {error}') from error
  return wrapped


def located(error: Exception, index: int, prefix: str = '') -> Exception:
  """Returns the error as one line that names the environment and the code.

  Args:
    error: The exception as caught.
    index: Number of the environment.
    prefix: First words of the line.
  """
  text = ' '.join(str(error).split())
  if isinstance(error, UserError):
    return UserError(f'{prefix}environment {index}: {text}')
  frame = traceback.extract_tb(error.__traceback__)[-1]
  return RuntimeError(
    f'{prefix}environment {index} ({os.path.basename(frame.filename)}:'
    f'{frame.lineno}): {type(error).__name__}: {text}'
  )


class _DictAction(gymnasium.ActionWrapper):
  """Maps a flat dict of the agent's actions to the environment's action."""

  def __init__(self, env: gymnasium.Env):
    super().__init__(env)
    leaves = conversion.flatten(env.action_space, 'action')
    self._convert = {}
    self.spaces: dict[str, gymnasium.Space] = {}
    for name, space in leaves.items():
      parts, self._convert[name] = conversion.action_leaf(name, space)
      self.spaces |= parts
    self.action_space = Dict(self.spaces)

  def action(self, action: dict[str, np.ndarray]) -> Any:
    return self._build(self.env.action_space, action, 'action')

  def _build(self, space: gymnasium.Space, action: dict, path: str) -> Any:
    if not isinstance(space, Dict):
      return self._convert[path](action)
    prefix = '' if space is self.env.action_space else f'{path}/'
    return {
      name: self._build(child, action, f'{prefix}{name}')
      for name, child in space.spaces.items()
    }


class _DictObservation(gymnasium.Wrapper):
  """Returns flat dicts of the agent's observations; checks every value."""

  def __init__(self, env: gymnasium.Env, index: int):
    super().__init__(env)
    self._index = index
    self._given = env.observation_space
    image = conversion.is_image(self._given)
    self._key = 'image' if image else 'vector'
    self._convert = {}
    self.spaces: dict[str, gymnasium.Space] = {}
    for name, space in conversion.flatten(self._given, self._key).items():
      leaf, self._convert[name] = conversion.observation_leaf(name, space)
      self.spaces[name] = leaf
    self.observation_space = Dict(self.spaces)

  def reset(self, *, seed=None, options=None):
    try:
      obs, info = self.env.reset(seed=seed, options=options)
      return self._observation(obs), self._logs(info)
    except Exception as error:
      raise located(error, self._index) from error

  def step(self, action):
    try:
      obs, reward, terminated, truncated, info = self.env.step(action)
      reward = float(reward)
      if not np.isfinite(reward):
        raise UserError(f'the reward is {reward}')
      obs = self._observation(obs)
      return obs, reward, bool(terminated), bool(truncated), self._logs(info)
    except Exception as error:
      raise located(error, self._index) from error

  def _observation(self, value: Any) -> dict[str, np.ndarray]:
    name = ''
    try:
      parts = conversion.flatten_value(self._given, value, self._key)
      result = {}
      for name, part in parts.items():
        result[name] = self._convert[name](part)
      return result
    except (ValueError, TypeError) as error:
      which = f'observation {name!r}' if name else 'the observation'
      raise UserError(f'{which} {error}') from error

  def _logs(self, info: dict[str, Any]) -> dict[str, float]:
    return {
      name: float(value)
      for name, value in info.items()
      if name.startswith(conversion.LOG)
      and name not in self.spaces
      and np.ndim(value) == 0
    }


class ResizeImages(gymnasium.ObservationWrapper):
  """Resizes uint8 images, alone or in a Dict."""

  def __init__(self, env: gymnasium.Env, size: tuple[int, int]):
    super().__init__(env)
    self._size = size[0], size[1]
    self._given = env.observation_space
    self.observation_space = self._space(self._given)

  def observation(self, observation: Any) -> Any:
    """Returns the observation with resized images."""
    return self._resize(self._given, observation)

  def _space(self, space: gymnasium.Space) -> gymnasium.Space:
    if isinstance(space, Dict):
      return Dict({k: self._space(v) for k, v in space.spaces.items()})
    if not conversion.is_image(space):
      return space
    return conversion.image_space((*self._size, *(space.shape or ())[2:]))

  def _resize(self, space: gymnasium.Space, value: Any) -> Any:
    if isinstance(space, Dict):
      return {k: self._resize(v, value[k]) for k, v in space.spaces.items()}
    return resize(value, self._size) if conversion.is_image(space) else value


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes uint8 [H, W] or [H, W, C] to (height, width), antialiased."""
  from PIL import Image

  image = np.asarray(image)
  if image.shape[:2] == tuple(size):
    return image
  planes = image.reshape((*image.shape[:2], -1))
  resized = [
    np.asarray(
      Image.fromarray(np.ascontiguousarray(planes[..., i])).resize(
        (size[1], size[0]), Image.Resampling.BILINEAR
      )
    )
    for i in range(planes.shape[-1])
  ]
  return np.stack(resized, -1).reshape((*size, *image.shape[2:]))
