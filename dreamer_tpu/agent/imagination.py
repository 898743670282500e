"""Rollouts of the policy in the world model."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import struct

from dreamer_tpu.agent import spaces
from dreamer_tpu.agent.heads import Feat, PolicyHead
from dreamer_tpu.agent.rssm import RSSM

Tree = dict[str, Any]


@struct.dataclass
class Rollout:
  """N imagined trajectories of H steps, time first, without gradients.

  Attributes:
    feats: Features [H, N, D] and [H, N, S * C].
    actions: [H, N, ...] per action key.
    linear: Results [H, N, ...] of all linear layers of the policy.
    last: The feature after the last action, [N, D] and [N, S * C].
  """

  feats: Feat
  actions: Tree
  linear: Tree
  last: Feat


def rollout(
  rssm: RSSM,
  policy: PolicyHead,
  act_space: Mapping[str, spaces.Space],
  start: Tree,
  horizon: int,
  key: jax.Array | None,
) -> Rollout:
  """Imagines `horizon` steps.

  Args:
    rssm: World model, with its parameters in the compute dtype.
    policy: Policy, likewise.
    act_space: Per action key.
    start: `deter` [N, D] and `stoch` [N, S, C].
    horizon: Number of steps H.
    key: PRNG key, or None to take modes.
  """
  imagine = rssm.imagine()

  def step(state, noise):
    feat = rssm.feat(**state)
    dist = policy(feat)
    action = dist.sample(noise['action'])
    state = imagine(state, spaces.concat(act_space, action), noise['stoch'])
    return state, (feat, action, dist.linear)

  act_key, state_key = split(key)
  batch = (horizon, len(start['deter']))
  noise = {
    'action': policy.noise(act_key, batch),
    'stoch': rssm.noise(state_key, batch),
  }
  state, (feats, actions, linear) = jax.lax.scan(
    step, start, noise, length=horizon
  )
  last = rssm.feat(**state)
  return jax.lax.stop_gradient(Rollout(feats, actions, linear, last))


def split(key: jax.Array | None) -> Any:
  """Splits a key in two; None, which stands for modes, stays None."""
  return (None, None) if key is None else jax.random.split(key)
