"""Craftax: Crafter and a longer game of its kind, as JAX functions.

'craftax_Craftax-Classic-Symbolic-v1', and the same without 'Classic' or with
'Pixels'. Death and the last boss are terminal, the time limit is not.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

from dreamer_tpu.envs import registry
from dreamer_tpu.envs.kinds import vector_space

NAMES = (
  'Craftax-Classic-Pixels-v1',
  'Craftax-Classic-Symbolic-v1',
  'Craftax-Pixels-v1',
  'Craftax-Symbolic-v1',
)

_UNLIMITED = 2**31 - 2


class Craftax:
  """One of the four games.

  `log/achievement_NAME` is 1 from the step on that achieves it.

  Args:
    name: One of `NAMES`.
    config: length in steps, 0 for the game's own limit.
  """

  def __init__(self, name: str, config: Any):
    from craftax import craftax_env

    self._env = craftax_env.make_craftax_env_from_name(name, auto_reset=False)
    params = self._env.default_params
    self._length = config.length or params.max_timesteps
    self._params = params.replace(max_timesteps=_UNLIMITED)
    constants, self._renderer = _modules(name)
    self._achievements = {
      f'log/achievement_{x.name.lower()}': x.value
      for x in constants.Achievement
    }
    self._pixels = constants.BLOCK_PIXEL_SIZE_IMG
    self._render: Any = None
    self._key = 'image' if 'Pixels' in name else 'vector'
    seen = self._env.observation_space(self._params)
    own = {self._key: Box(0, 1, seen.shape, np.float32)}
    logs = {key: vector_space(()) for key in self._achievements}
    self.observation_space = Dict({**own, **logs})
    self.action_space = Discrete(self._env.num_actions)

  def reset(self, key: Any):
    """Starts an episode in a new world."""
    obs, state = self._env.reset_env(key, self._params)
    return state, self._observation(obs, state)

  def step(self, state: Any, action: Any, key: Any):
    """Takes a step."""
    obs, state, reward, over, _ = self._env.step_env(
      key, state, action, self._params
    )
    cut = (state.timestep >= self._length) & ~over
    return state, self._observation(obs, state), reward, over, cut

  def render(self, state: Any) -> np.ndarray:
    """Returns a screenshot."""
    import jax

    if self._render is None:
      self._render = jax.jit(
        self._renderer.make_craftax_pixel_renderer(self._pixels)
      )
    return np.asarray(self._render(state)).astype(np.uint8)

  def _observation(self, obs: Any, state: Any) -> dict[str, Any]:
    logs = {k: state.achievements[i] for k, i in self._achievements.items()}
    return {self._key: obs, **logs}


def _modules(name: str) -> tuple[Any, Any]:
  """Returns the constants and the renderer of a game."""
  if 'Classic' in name:
    from craftax.craftax_classic import constants, renderer
  else:
    from craftax.craftax import constants, renderer
  return constants, renderer


def names(name: str, config: Any) -> Iterable[str]:
  """Returns the four games."""
  del name, config
  return NAMES


SUITE = registry.Suite(
  make_functional=Craftax, names=names, package='craftax', extra='craftax'
)
