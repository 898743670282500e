"""The terms of the loss (Section 'Methods' of the paper)."""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from dreamer_tpu.agent import normalizer
from dreamer_tpu.agent.distributions import Categorical, TwoHot
from dreamer_tpu.agent.heads import ActionDist, Feat, ScalarHead
from dreamer_tpu.agent.imagination import Rollout
from dreamer_tpu.agent.ops import placement
from dreamer_tpu.agent.returns import lambda_return
from dreamer_tpu.agent.rssm import Posterior

Losses = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
sg = jax.lax.stop_gradient
scope = jax.named_scope  # profiles identify the parts of an update by these


def world_model(
  model: Any,
  start: Mapping[str, jax.Array],
  obs: Mapping[str, jax.Array],
  last_action: jax.Array,
  key: jax.Array | None,
  config: Any,
) -> tuple[Posterior, Losses, Metrics]:
  """Computes posterior states and the losses of the world model (Eq. 4).

  Args:
    model: Modules `encoder`, `rssm`, `decoder`, `reward` and `cont`.
    start: `deter` [B, D] and `stoch` [B, S, C] before the first step.
    obs: [B, T, ...] observations, reward and flags.
    last_action: float32 [B, T, A], the action that led to each step.
    key: PRNG key, or None to take modes.
    config: `agent` of the configuration.

  Returns:
    The posterior, losses [B, T] by term, and metrics.
  """
  # Image activations are large and cheap to recompute.
  maybe_remat = jax.checkpoint if config.remat else lambda fn: fn
  with scope('encoder'):
    tokens = maybe_remat(lambda: model.encoder(obs))()
  with scope('observe'):
    post = model.rssm.observe(start, tokens, last_action, obs['is_first'], key)
  with scope('dynamics'):
    prior = model.rssm.prior_dist(post.deter)
    terms, metrics = dynamics(post.dist, prior, config.rssm.free_nats)
  feat = model.rssm.feat(post.deter, post.stoch)
  with scope('decoder'):
    decoded = maybe_remat(lambda *feat: model.decoder.losses(*feat, obs))(*feat)
  terms |= {f'decoder/{k}': v for k, v in decoded.items()}
  with scope('outcomes'):
    terms['reward'] = model.reward(feat).loss(obs['reward'])
    alive = 1 - obs['is_terminal'].astype(jnp.float32)
    terms['cont'] = model.cont(feat).loss(alive * (1 - 1 / config.horizon))
  return post, terms, metrics


def dynamics(
  post: Categorical, prior: Categorical, free_nats: float
) -> tuple[Losses, Metrics]:
  """Computes KL balancing with free nats (Eq. 5).

  Args:
    post: Posterior over [B, T, S, C].
    prior: Prior over [B, T, S, C].
    free_nats: Nats below which there is no gradient.

  Returns:
    `dyn` and `rep` [B, T], and metrics.
  """
  stop = lambda dist: jax.tree.map(sg, dist)
  dyn = stop(post).kl(prior).sum(-1)
  rep = post.kl(stop(prior)).sum(-1)
  losses = {
    'dyn': jnp.maximum(free_nats, dyn),
    'rep': jnp.maximum(free_nats, rep),
  }
  metrics = {
    'dyn/kl': dyn.mean(),
    'dyn/prior_entropy': prior.entropy().sum(-1).mean(),
    'dyn/post_entropy': post.entropy().sum(-1).mean(),
  }
  return losses, metrics


@struct.dataclass
class Imagined:
  """Quantities of imagined trajectories that others use.

  Attributes:
    actions: [H, N, ...] per action key.
    returns: float32 [H, N] lambda-returns, without gradients.
    value: Logits of the critic [H, N, bins].
    slow_mean: float32 [H + 1, N] predictions of the slow critic.
  """

  actions: Mapping[str, jax.Array]
  returns: jax.Array
  value: jax.Array
  slow_mean: jax.Array


def actor_critic(
  model: Any,
  frozen: Any,
  slow_value: ScalarHead,
  rollout: Rollout,
  retnorm: normalizer.State,
  config: Any,
) -> tuple[Losses, Imagined, normalizer.State, Metrics]:
  """Computes actor and critic losses on imagined trajectories (Eqs. 6 to 12).

  Args:
    model: Modules `policy` and `value`.
    frozen: All modules behind a stop-gradient.
    slow_value: The slow critic.
    rollout: Imagined trajectories.
    retnorm: State of the return normalizer.
    config: `agent` of the configuration.

  Returns:
    `policy` and `value` losses [H, N], imagined quantities, the new normalizer
    state, and metrics.
  """
  feats, last = rollout.feats, rollout.last
  value = model.value(feats)
  slow_mean = append_last(lambda x: slow_value(x).mean(), feats, last)
  value_mean = jnp.concatenate([value.mean(), frozen.value(last).mean()[None]])
  terms, returns, retnorm, metrics = imagination(
    rollout.actions,
    append_last(lambda x: frozen.reward(x).mean(), feats, last),
    append_last(lambda x: frozen.cont(x).prob(), feats, last),
    model.policy(feats, rollout.linear),
    value,
    value_mean,
    slow_mean,
    retnorm,
    config,
  )
  imagined = Imagined(rollout.actions, returns, value.logits, slow_mean)
  return terms, imagined, retnorm, metrics


def append_last(fn: Callable, xs: Any, x: Any) -> jax.Array:
  """Evaluates `fn` on H steps and on one more, [H + 1, N]."""
  return jnp.concatenate([fn(xs), fn(x)[None]])


def imagination(
  actions: Mapping[str, jax.Array],
  reward: jax.Array,
  cont: jax.Array,
  policy: ActionDist,
  value: TwoHot,
  value_mean: jax.Array,
  slow_mean: jax.Array,
  retnorm: normalizer.State,
  config: Any,
) -> tuple[Losses, jax.Array, normalizer.State, Metrics]:
  """Computes actor and critic losses from predictions (Eqs. 7, 8, 11).

  Args:
    actions: [H, N, ...] per key, without gradients.
    reward: [H + 1, N] predicted rewards.
    cont: [H + 1, N] predicted continue probabilities, discount included.
    policy: Action distributions at the first H features.
    value: Fast critic at the first H features.
    value_mean: [H + 1, N] predictions of the fast critic.
    slow_mean: [H + 1, N] predictions of the slow critic.
    retnorm: State of the return normalizer.
    config: `agent` of the configuration.

  Returns:
    `policy` and `value` losses [H, N], returns [H, N], the new normalizer
    state and metrics.
  """
  chex.assert_equal_shape([reward, cont, value_mean, slow_mean])
  target = sg(slow_mean if config.slow_value.target else value_mean)
  weight = sg(jnp.cumprod(cont, 0))
  last = jnp.zeros_like(cont)
  returns = lambda_return(
    last.T, 1 - cont.T, reward.T, target.T, 1.0, config.lam
  ).T
  norm = config.retnorm
  everywhere = placement.replicate(sg(returns))
  retnorm = normalizer.update(
    retnorm, everywhere, rate=norm.rate, low=norm.low, high=norm.high
  )
  scale = normalizer.scale(retnorm, norm.limit)
  advantage = sg((returns - target[:-1]) / scale)

  logp = policy.log_prob(sg(dict(actions)))
  entropy = policy.entropy()
  bonus = config.entropy * sum(entropy.values())
  losses = {'policy': weight[:-1] * -(logp * advantage + bonus)}
  losses['value'] = weight[:-1] * value_loss(value, slow_mean[:-1], returns)
  metrics = {
    'ret/mean': everywhere.mean(),
    'ret/min': everywhere.min(),
    'ret/max': everywhere.max(),
    'ret/low': retnorm['low'],
    'ret/high': retnorm['high'],
    'ret/scale': scale,
    'ret/beyond_scale': (jnp.abs(everywhere) >= scale).mean(),
    'adv/mean': advantage.mean(),
    # From both moments, which are all-reduced together.
    'adv/std': jnp.sqrt(
      jnp.maximum(0, jnp.square(advantage).mean() - advantage.mean() ** 2)
    ),
    'adv/magnitude': jnp.abs(advantage).mean(),
    'imag/reward': reward.mean(),
    'imag/cont': cont.mean(),
    'imag/value': value_mean.mean(),
    'imag/slow_value': slow_mean.mean(),
    'imag/weight': weight.mean(),
    **{f'policy/entropy/{k}': v.mean() for k, v in entropy.items()},
  }
  return losses, sg(returns), retnorm, metrics


def replay_value(
  frozen_value: ScalarHead,
  feat: Feat,
  obs: Mapping[str, jax.Array],
  imagined: Imagined,
  config: Any,
) -> jax.Array:
  """Computes the critic's loss on replayed rewards.

  The critic's logits on imagined features are reused, so that its weight
  gradients are all-reduced once. Gradients to the replayed features go through
  the critic behind a stop-gradient.

  Args:
    frozen_value: The fast critic behind a stop-gradient.
    feat: Replayed features [B, T, ...]; gradients reach them.
    obs: Replayed rewards and flags [B, T].
    imagined: Imagined from each replayed state, N = B T.
    config: `agent` of the configuration.

  Returns:
    float32 [B, T - 1].
  """
  shape = obs['reward'].shape
  first = imagined.value[0].reshape(*shape, -1)
  value = TwoHot(logits=frozen_value(feat).logits + (first - sg(first)))
  returns = lambda_return(
    obs['is_last'],
    obs['is_terminal'],
    obs['reward'],
    imagined.returns[0].reshape(shape),
    1 - 1 / config.horizon,
    config.lam,
  )
  slow_mean = imagined.slow_mean[0].reshape(shape)
  weight = 1 - obs['is_last'].astype(jnp.float32)
  value = TwoHot(logits=value.logits[:, :-1])
  return weight[:, :-1] * value_loss(value, slow_mean[:, :-1], returns)


def value_loss(
  value: TwoHot, slow_mean: jax.Array, returns: jax.Array
) -> jax.Array:
  """Computes cross entropies to the return and to the slow critic.

  Args:
    value: Fast critic at some steps.
    slow_mean: Predictions of the slow critic.
    returns: Returns.

  Returns:
    float32 like `returns`.
  """
  return value.loss(returns, slow_mean)
