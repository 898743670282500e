"""Environments whose states hold the observation, the reward and `done`."""

import atexit
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.spaces import Box, Dict, Space

from dreamer_tpu.envs import rendering
from dreamer_tpu.envs.kinds import vector_space


class Combined:
  """An environment with the interface of Brax and MuJoCo Playground.

  `reset(key)` and `step(state, action)` return a state with the fields `obs`,
  `reward` and `done`, which is a termination. Actions are in [-1, 1].

  Args:
    env: The environment, without wrappers of its library.
    render: Function of its state that returns a screenshot, uint8 [H, W, 3].
  """

  def __init__(self, env: Any, render: Callable[[Any], np.ndarray]):
    self._env = env
    self.render = render
    shapes = jax.eval_shape(env.reset, jax.random.PRNGKey(0)).obs
    self.observation_space = _space(shapes)
    self.action_space: Space = Box(-1, 1, (env.action_size,), np.float32)

  def reset(self, key: jax.Array):
    """Starts an episode."""
    state = self._env.reset(key)
    return state, state.obs

  def step(self, state: Any, action: jax.Array, key: jax.Array):
    """Takes a step; randomness comes from the state."""
    del key
    state = self._env.step(state, action)
    return state, state.obs, state.reward, state.done > 0, False


class Screen:
  """Renders states of a MuJoCo model.

  Args:
    model: A `mujoco.MjModel`.
  """

  def __init__(self, model: Any):
    self._model = model
    self._renderer: Any = None

  def __call__(self, fields: Mapping[str, Any]) -> np.ndarray:
    """Returns a screenshot, uint8 [H, W, 3].

    Args:
      fields: Values of `mujoco.MjData` that define the state, such as `qpos`.
    """
    import mujoco

    if self._renderer is None:
      rendering.simplify(self._model)
      self._renderer = mujoco.Renderer(self._model, *rendering.SIZE)
      # Before MuJoCo's own function ends EGL; after it, closing would raise.
      atexit.register(_close, weakref.ref(self._renderer))
    data = mujoco.MjData(self._model)
    for name, value in fields.items():
      getattr(data, name)[:] = value
    mujoco.mj_forward(self._model, data)
    camera = 0 if self._model.ncam else -1
    self._renderer.update_scene(data, camera=camera)
    return self._renderer.render()


def _close(renderer: weakref.ref) -> None:
  """Closes a renderer unless it is gone already."""
  if (alive := renderer()) is not None:
    alive.close()


def _space(shapes: Any) -> gymnasium.Space:
  """Returns the space of one array or a dict of arrays."""
  if isinstance(shapes, dict):
    return Dict({key: _space(value) for key, value in shapes.items()})
  return vector_space(shapes.shape)
