"""Rollouts of the policy in the world model."""

from collections.abc import Mapping
from typing import Any

import jax

from dreamer_tpu.agent import spaces
from dreamer_tpu.agent.heads import Feat, PolicyHead
from dreamer_tpu.agent.rssm import RSSM

Tree = dict[str, Any]


def rollout(
  rssm: RSSM,
  policy: PolicyHead,
  act_space: Mapping[str, spaces.Space],
  start: Tree,
  horizon: int,
  key: jax.Array | None,
) -> tuple[Feat, Tree, list[jax.Array], Feat]:
  """Imagines H steps; nothing carries gradients.

  Args:
    rssm: The world model, with parameters behind a stop-gradient.
    policy: The policy, likewise.
    act_space: Per action key.
    start: `deter` [N, D] and `stoch` [N, S, C].
    horizon: Steps H to imagine.
    key: PRNG key, or None to take modes.

  Returns:
    Of H steps, time first: features [H, N, D] and [H, N, S C], actions
    [H, N, ...] per key, and `Policy.linear`, [H, N, units] each. The feature
    that follows, [N, D] and [N, S C].
  """
  imagine = rssm.imagine()

  def step(state, noise):
    feat = rssm.feat(state)
    acting = policy(feat)
    action = acting.choose(noise['action'])
    state = imagine(state, spaces.concat(act_space, action), noise['stoch'])
    return state, (feat, action, acting.linear)

  act_key, state_key = split(key)
  batch = (horizon, len(start['deter']))
  noise = {
    'action': policy.noise(act_key, batch),
    'stoch': rssm.noise(state_key, batch),
  }
  start = rssm.by_block(start)
  state, (feats, actions, linear) = jax.lax.scan(
    step, start, noise, length=horizon
  )
  return jax.lax.stop_gradient((feats, actions, linear, rssm.feat(state)))


def split(key: jax.Array | None) -> Any:
  """Two keys of one; None, which stands for modes, stays None."""
  return (None, None) if key is None else jax.random.split(key)
