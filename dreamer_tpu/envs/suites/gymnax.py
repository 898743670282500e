"""Gymnax: small environments as JAX functions, such as 'gymnax_CartPole-v1'.

The time limit of an environment is a truncation, all other ends are terminal.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np

from dreamer_tpu.envs import registry

# Fields of the states of environments that Gymnasium has as well.
CLASSIC = {
  'Acrobot-v1': ('joint_angle1', 'joint_angle2', 'velocity_1', 'velocity_2'),
  'CartPole-v1': ('x', 'x_dot', 'theta', 'theta_dot'),
  'MountainCar-v0': ('position', 'velocity'),
  'MountainCarContinuous-v0': ('position', 'velocity'),
  'Pendulum-v1': ('theta', 'theta_dot'),
}

_UNLIMITED = 2**31 - 2


class Gymnax:
  """An environment of Gymnax.

  Args:
    name: ID in Gymnax's registry.
    config: length in frames, 0 for the environment's own limit.
  """

  def __init__(self, name: str, config: Any):
    import gymnax
    from gymnax.environments import spaces

    env, params = gymnax.make(name)
    if config.length:
      params = params.replace(max_steps_in_episode=config.length)
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Bounds are cast to float32.
      self.observation_space, self.action_space = (
        spaces.gymnax_space_to_gym_space(space)
        for space in (env.observation_space(params), env.action_space(params))
      )
    self._env, self._params = env, params
    self._screen: Any = None
    self._unlimited = params.replace(max_steps_in_episode=_UNLIMITED)

  def reset(self, key: Any):
    """Starts an episode."""
    obs, state = self._env.reset_env(key, self._params)
    return state, obs

  def step(self, state: Any, action: Any, key: Any):
    """Takes a step."""
    obs, state, reward, done, _ = self._env.step_env(
      key, state, action, self._params
    )
    # In some versions the limit is one of the terminal conditions.
    over = done & self._env.is_terminal(state, self._unlimited)
    limit = state.time >= self._params.max_steps_in_episode
    return state, obs, reward, over, (done | limit) & ~over

  def render(self, state: Any) -> np.ndarray:
    """Returns what Gymnasium or Gymnax's visualizer draws."""
    if self._env.name in CLASSIC:
      return self._render_classic(state)
    import matplotlib

    matplotlib.use('agg')
    from gymnax.visualize import Visualizer
    from matplotlib import pyplot

    visualizer = Visualizer(self._env, self._params, [state])
    try:
      visualizer.init()
      visualizer.fig.canvas.draw()
      return np.array(visualizer.fig.canvas.buffer_rgba())[..., :3]
    finally:
      pyplot.close(visualizer.fig)

  def _render_classic(self, state: Any) -> np.ndarray:
    # Gymnax's visualizer uses an old interface of Gym.
    name = self._env.name
    if self._screen is None:
      made = gymnasium.make(name, render_mode='rgb_array')
      made.reset()
      self._screen = made.unwrapped
    self._screen.state = np.array([getattr(state, x) for x in CLASSIC[name]])
    return self._screen.render()


def names(name: str, config: Any) -> Iterable[str]:
  """Returns the IDs of Gymnax's registry."""
  del name, config
  import gymnax

  return gymnax.registered_envs


SUITE = registry.Suite(
  make_functional=Gymnax, names=names, package='gymnax', extra='gymnax'
)
