"""Environments of dm_control: proprioception, cameras and their renderer."""

import contextlib
import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict

from dreamer_tpu.envs import rendering
from dreamer_tpu.envs.from_dm import FromDM
from dreamer_tpu.envs.kinds import image_space
from dreamer_tpu.errors import UserError

GL = 'MUJOCO_GL'


def load(name: str, render: bool, wanted: bool = False) -> ModuleType:
  """Imports a module of dm_control, which selects its renderer on import.

  Args:
    name: Module, such as 'dm_control.suite'.
    render: Whether it must render.
    wanted: Whether it should, if that is possible.

  Raises:
    UserError: It must render, but cannot.
  """
  if wanted and not render:
    with contextlib.suppress(UserError):
      return load(name, True)
    os.environ[GL] = 'disable'
  chosen = os.environ.get(GL)
  os.environ.setdefault(GL, 'egl' if render else 'disable')
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError:
    raise
  except (ImportError, AttributeError, RuntimeError) as error:
    if not render:
      raise
    raise UserError(
      f'rendering with {GL}={os.environ[GL]} fails ({error}): install '
      f'libegl1, or set {GL}=osmesa'
    ) from error
  finally:
    if chosen is None and not render:
      del os.environ[GL]  # Workers that render inherit the environment.


def reseed(env: Any, seed: int) -> Any:
  """Seeds a task of dm_control.suite or dm_control.composer; returns it."""
  composer = hasattr(env, 'random_state')
  (env.random_state if composer else env.task.random).seed(seed)
  return env


class Control(FromDM):
  """An environment of dm_control.

  Args:
    env: Environment of dm_control.suite or dm_control.composer.
    config: repeat; image and proprio (observations); size (height, width) and
      camera of images. Camera -1 selects the cameras that the task observes
      itself, under their own keys, or else `camera`.
    camera: Default camera, a number or a name.
    reseed: As for `FromDM`.
    render_mode: 'rgb_array' for `render`, which fails without graphics.
  """

  def __init__(
    self,
    env: Any,
    config: Any,
    camera: int | str = 0,
    *,
    reseed: Callable[[Any, int], Any] = reseed,
    render_mode: str | None = None,
  ):
    super().__init__(
      env, config.repeat, lambda env, seed: self._prepare(reseed(env, seed))
    )
    self.render_mode = render_mode
    self._size = tuple(config.size)
    self._camera = camera if config.camera < 0 else config.camera
    given: Any = self.observation_space
    spaces = given.spaces
    self._own = [key for key, space in spaces.items() if _is_image(space)]
    self._use_own = bool(self._own and config.image and config.camera < 0)
    self._use_camera = config.image and not self._use_own
    self._keys = list(self._own) if self._use_own else []
    if config.proprio:
      self._keys += [key for key in spaces if key not in self._own]
    image = image_space((*self._size, 3))
    observed = {k: image if k in self._own else spaces[k] for k in self._keys}
    if self._use_camera:
      observed['image'] = image
    self.observation_space = Dict(observed)
    self._prepare(env)

  def render(self):
    """Returns a plain picture of the camera, uint8 [H, W, 3]."""
    rendering.simplify(self.dm.physics.model)
    return self.dm.physics.render(*rendering.SIZE, self._camera)

  def _observation(self, timestep: Any) -> dict[str, np.ndarray]:
    result = {key: timestep.observation[key] for key in self._keys}
    for key in self._own:
      if key in result:  # Manipulation adds an axis.
        result[key] = result[key].reshape(*self._size, 3)
    if self._use_camera:
      result['image'] = self.dm.physics.render(*self._size, self._camera)
    return result

  def _prepare(self, env: Any) -> Any:
    """Sets up the cameras that the task observes; returns the environment."""
    for key in self._own:  # Environments of composer read this at a reset.
      camera = env.task.observables[key]
      camera.enabled = self._use_own
      camera.height, camera.width = self._size
    return env


def _is_image(space: Any) -> bool:
  return (
    isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) >= 3
  )
