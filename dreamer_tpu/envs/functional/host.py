"""Functional environments as a Gymnasium vector environment."""

from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import create_empty_array

from dreamer_tpu.envs.functional.environment import FunctionalEnv
from dreamer_tpu.envs.functional.vector import Batch, keys_of, screenshots
from dreamer_tpu.envs.restarting import RESTARTED


class HostVector(gymnasium.vector.VectorEnv):
  """N environments that step in a compiled program on the CPU.

  The same seeds and actions give the same episodes as in `vector.Vector`.

  Args:
    env: Functional environment.
    num_envs: Number N of environments.
  """

  def __init__(self, env: FunctionalEnv, num_envs: int):
    self.num_envs = num_envs
    self.metadata = {'autoreset_mode': AutoresetMode.NEXT_STEP}
    self.single_observation_space = env.observation_space
    self.single_action_space = env.action_space
    self._env = env
    batch = Batch(env)
    self._reset, self._step = jax.jit(batch.reset), jax.jit(batch.step)
    self._device = jax.local_devices(backend='cpu')[0]
    self._carry: Any = None
    # Compiles here, as the time of a step is limited.
    self.reset(seed=list(range(num_envs)))
    self.step(create_empty_array(env.action_space, num_envs))

  def reset(self, *, seed=None, options=None):
    """Starts an episode of each environment; `seed` is None or a list."""
    del options
    keys = self._carry.key if seed is None else keys_of(seed)
    with jax.default_device(self._device):
      self._carry, obs = self._reset(keys)
    return jax.tree.map(np.asarray, obs), {}

  def step(self, actions):
    """Steps all environments."""
    restarts = self._carry.restarts
    with jax.default_device(self._device):
      self._carry, *result = self._step(self._carry, actions)
    restarted = np.asarray(self._carry.restarts > restarts)
    infos = {RESTARTED: restarted} if restarted.any() else {}
    return (*jax.tree.map(np.asarray, result), infos)

  def screenshots(self, indices: list[int]) -> dict[int, np.ndarray | str]:
    """Returns screenshots of some environments, or why there are none."""
    return screenshots(self._env, self._carry.state, indices)
