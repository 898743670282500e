"""The compiled policy step on one device."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dreamer_tpu.agent import Agent, spaces
from dreamer_tpu.agent.ops import backend
from dreamer_tpu.learner.steps import select_backend

Tree = dict[str, Any]


class PolicyStep:
  """Acts in N environments; the carry stays on the device.

  Args:
    agent: The agent's functions.
    envs: Number N of environments.
    seed: Seed of the actions.
    mode: 'mode' or 'sample' of the policy, or 'random' for uniform actions;
      latents are computed in all modes.
    device: Device of the computation and of `params`.
  """

  def __init__(
    self,
    agent: Agent,
    envs: int,
    *,
    seed: int,
    mode: str = 'sample',
    device: jax.Device | None = None,
  ):
    self._agent = agent
    self._envs = envs
    self.device = device or jax.local_devices()[0]
    # As an argument, so that all seeds share one compiled program.
    self._seed = jax.device_put(np.uint32(seed), self.device)
    self._mode = mode
    self._keys = [*agent.obs_space, 'is_first']
    self._step = jax.jit(self._step_fn, donate_argnums=1)
    self.params: Tree = {}
    self.steps = 0
    self.reset()

  def reset(self) -> None:
    """Resets the carry; every environment must start an episode."""
    carry = self._agent.initial_carry(self._envs)
    self._carry = jax.device_put(carry, self.device)

  def __call__(
    self, obs: Mapping[str, np.ndarray]
  ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Takes one step and waits for the action.

    Args:
      obs: [N, ...] per observation key and `is_first`; others are ignored.

    Returns:
      Actions [N, ...] per key, and the latents to store with this step.
    """
    inputs = jax.device_put(
      ({k: obs[k] for k in self._keys}, np.uint32(self.steps)), self.device
    )
    self._carry, action, latents = self._step(
      self.params, self._carry, *inputs, self._seed
    )
    self.steps += 1
    return jax.device_get((action, latents))

  def _step_fn(self, params, carry, obs, count, seed):
    with backend.using(select_backend(self.device.platform, 1)):
      return self._act(params, carry, obs, count, seed)

  def _act(self, params, carry, obs, count, seed):
    key = jax.random.fold_in(jax.random.key(seed), count)
    if self._mode != 'random':
      mode = self._mode == 'mode'
      return self._agent.policy(params, carry, obs, key, mode=mode)
    key, action_key = jax.random.split(key)
    carry, _, latents = self._agent.policy(params, carry, obs, key)
    action = spaces.sample(self._agent.act_space, action_key, self._envs)
    return {**carry, 'action': action}, action, latents
