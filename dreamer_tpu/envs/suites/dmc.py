"""DeepMind Control Suite, with proprioception, pixels or both.

A discount of 0 is terminal, a time limit is not.
"""

import os
from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from dreamer_tpu.envs import registry
from dreamer_tpu.envs.conversion import image_space, vector_space
from dreamer_tpu.errors import UserError

GL = 'MUJOCO_GL'

# Domains whose physics takes longer than handing a step to a process.
HEAVY = ('dog', 'humanoid', 'humanoid_CMU', 'quadruped')


class ControlSuite(gymnasium.Env):
  """One task of the suite as a Gymnasium environment.

  Args:
    name: Domain and task, such as 'ball_in_cup_catch'.
    config: repeat; image and proprio (observations); size (height, width) and
      camera of the image (-1 selects camera 0, for quadruped 2).
  """

  def __init__(self, name: str, config: Any):
    suite = _suite(config.image)
    self._domain, self._task = split(name)
    self._config = config
    camera = 2 if self._domain == 'quadruped' else 0
    self._camera = camera if config.camera < 0 else config.camera
    # lqr draws its model here: a fixed seed gives all environments one model.
    task_kwargs = {'random': 0}
    self._env = suite.load(self._domain, self._task, task_kwargs)
    action = self._env.action_spec()
    self.action_space = Box(
      np.broadcast_to(action.minimum, action.shape).astype(np.float32),
      np.broadcast_to(action.maximum, action.shape).astype(np.float32),
      dtype=np.float32,
    )
    observed: dict[str, gymnasium.Space] = {}
    if config.proprio:
      for key, spec in self._env.observation_spec().items():
        observed[key] = vector_space(spec.shape)
    if config.image:
      observed['image'] = image_space((*config.size, 3))
    self.observation_space = Dict(observed)

  def reset(self, *, seed=None, options=None):
    """Starts an episode."""
    super().reset(seed=seed)
    if seed is not None:
      self._env.task.random.seed(seed)
    return self._observation(self._env.reset()), {}

  def step(self, action):
    """Steps the physics `repeat` times."""
    reward = 0.0
    for _ in range(self._config.repeat):
      timestep = self._env.step(action)
      reward += timestep.reward or 0.0
      if timestep.last():
        break
    terminated = timestep.last() and timestep.discount == 0
    truncated = timestep.last() and not terminated
    return self._observation(timestep), reward, terminated, truncated, {}

  def close(self):
    """Frees the physics and its renderer."""
    self._env.close()

  def _observation(self, timestep: Any) -> dict[str, np.ndarray]:
    result = dict(timestep.observation) if self._config.proprio else {}
    if self._config.image:
      height, width = self._config.size
      physics = self._env.physics
      result['image'] = physics.render(height, width, self._camera)
    return result


def _suite(render: bool) -> Any:
  """Imports dm_control, which selects its renderer on import."""
  chosen = os.environ.get(GL)
  os.environ.setdefault(GL, 'egl' if render else 'disable')
  try:
    from dm_control import suite
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
  return suite


def split(name: str) -> tuple[str, str]:
  """Splits a name into domain and task; both may contain underscores."""
  from dm_control import suite

  return next(pair for pair in suite.ALL_TASKS if '_'.join(pair) == name)


def names(name: str, config: Any) -> Iterable[str]:
  """Returns all tasks of the suite."""
  del name
  return ['_'.join(pair) for pair in _suite(config.image).ALL_TASKS]


def cheap(name: str, config: Any) -> bool:
  """Returns whether physics is fast: about 0.1 ms a step for small bodies."""
  return not config.image and split(name)[0] not in HEAVY


SUITE = registry.Suite(make=ControlSuite, names=names, cheap=cheap)
