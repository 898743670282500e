"""Rollouts of the policy in the world model."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dreamer_tpu.agent import spaces
from dreamer_tpu.agent.heads import PolicyHead
from dreamer_tpu.agent.rssm import RSSM

Tree = dict[str, Any]


def rollout(
  rssm: RSSM,
  policy: PolicyHead,
  act_space: Mapping[str, spaces.Space],
  start: Tree,
  horizon: int,
  key: jax.Array | None,
) -> tuple[Tree, Tree]:
  """Imagines H steps; nothing carries gradients.

  The loop hands out class indices instead of one-hots and no features, so
  that little is written: they are put together for all steps at once.

  Args:
    rssm: The world model, with parameters behind a stop-gradient.
    policy: The policy, likewise.
    act_space: Per action key.
    start: `deter` [N, D] and `stoch` [N, S, C].
    horizon: Steps H to imagine.
    key: PRNG key, or None to take modes.

  Returns:
    States and actions of H + 1 steps, time first: `deter` [H + 1, N, D],
    `stoch` [H + 1, N, S, C], and [H + 1, N, ...] per action key.
  """

  def act(state, key):
    return policy(rssm.feat(state)).sample(key)

  def compact(state):
    return state['deter'], jnp.argmax(state['stoch'], -1).astype(jnp.uint8)

  def step(state, key):
    act_key, state_key = split(key)
    action = act(state, act_key)
    flat = spaces.concat(act_space, action)
    new = rssm.imagine_step(state, flat, state_key)
    return new, (*compact(state), action)

  first, last = split(key)
  keys = None if key is None else jax.random.split(first, horizon)
  state, outs = jax.lax.scan(step, start, keys, length=horizon)
  deter, index, action = jax.lax.stop_gradient(
    jax.tree.map(
      lambda xs, x: jnp.concatenate([xs, x[None]]),
      outs,
      (*compact(state), act(state, last)),
    )
  )
  stoch = jax.nn.one_hot(index, rssm.stoch[1], dtype=rssm.dtype)
  return {'deter': deter, 'stoch': stoch}, action


def split(key: jax.Array | None) -> Any:
  """Two keys of one; None, which stands for modes, stays None."""
  return (None, None) if key is None else jax.random.split(key)
