"""The policy step on one device."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dreamer_tpu.agent import Agent, spaces
from dreamer_tpu.agent.ops import backend
from dreamer_tpu.learner.steps import select_backend

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyFunction:
  """A step of the policy in N environments, as a function to be traced.

  Attributes:
    agent: The agent's functions.
    envs: Number N of environments.
    mode: 'mode' or 'sample' of the policy, or 'random' for uniform actions;
      latents are computed in all modes.
    platform: Platform of the device, such as 'tpu'.
  """

  agent: Agent
  envs: int
  mode: str
  platform: str

  def initial_carry(self) -> Tree:
    """Returns the carry of environments that start an episode."""
    return self.agent.initial_carry(self.envs)

  def act(
    self,
    params: Tree,
    carry: Tree,
    obs: Mapping[str, Any],
    count: Any,
    seed: Any,
  ) -> tuple[Tree, Tree, Tree]:
    """Takes a step.

    Args:
      params: Weights of the policy.
      carry: Carry after the previous step.
      obs: [N, ...] per key of the agent's `policy_keys`, and `is_first`;
        others are ignored.
      count: Steps taken before, uint32; with `seed` it determines the actions.
      seed: Seed of the actions, uint32.

    Returns:
      The new carry, actions [N, ...] per key, and the latents to store.
    """
    with backend.using(select_backend(self.platform, 1)):
      obs = {k: obs[k] for k in (*self.agent.policy_keys, 'is_first')}
      key = jax.random.fold_in(jax.random.key(seed), count)
      if self.mode == 'random':
        return self._act_randomly(params, carry, obs, key)
      mode = self.mode == 'mode'
      return self.agent.policy(params, carry, obs, key, mode=mode)

  def _act_randomly(self, params, carry, obs, key):
    key, action_key = jax.random.split(key)
    carry, _, latents = self.agent.policy(params, carry, obs, key)
    action = spaces.sample(self.agent.act_space, action_key, self.envs)
    return {**carry, 'action': action}, action, latents


class PolicyStep:
  """Acts in N environments; the carry stays on the device.

  Args:
    agent: The agent's functions.
    envs: Number N of environments.
    seed: Seed of the actions.
    mode: See `PolicyFunction`.
    device: Device of the computation and of `params`.

  Attributes:
    function: The step, to be traced as a part of other programs.
    params: Weights.
    version: Updates that the weights have had.
    steps: Steps taken.
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
    self.device = device or jax.local_devices()[0]
    self.function = PolicyFunction(
      agent=agent, envs=envs, mode=mode, platform=self.device.platform
    )
    # As an argument, so that all seeds share one compiled program.
    self.seed = jax.device_put(np.uint32(seed), self.device)
    self._keys = [*agent.policy_keys, 'is_first']
    self._step = jax.jit(self.function.act, donate_argnums=1)
    self.params: Tree = {}
    self.version = 0
    self.steps = 0
    self.reset()

  def reset(self) -> None:
    """Resets the carry; every environment must start an episode."""
    carry = self.function.initial_carry()
    self._carry = jax.device_put(carry, self.device)

  def __call__(
    self, obs: Mapping[str, np.ndarray]
  ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Takes one step and waits for the action.

    Args:
      obs: [N, ...] per key of the agent's `policy_keys`, and `is_first`;
        others are ignored.

    Returns:
      Actions [N, ...] per key, and the latents to store with this step.
    """
    inputs = jax.device_put(
      ({k: obs[k] for k in self._keys}, np.uint32(self.steps)), self.device
    )
    self._carry, action, latents = self._step(
      self.params, self._carry, *inputs, self.seed
    )
    self.steps += 1
    return jax.device_get((action, latents))
