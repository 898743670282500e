"""The terms of the loss (Section 'Methods' of the paper)."""

from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dreamer_tpu.agent import normalizer
from dreamer_tpu.agent.distributions import Categorical, TwoHot
from dreamer_tpu.agent.heads import Policy
from dreamer_tpu.agent.ops import placement
from dreamer_tpu.agent.returns import lambda_return

Losses = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
sg = jax.lax.stop_gradient


def dynamics(
  post: Categorical, prior: Categorical, free_nats: float
) -> tuple[Losses, Metrics]:
  """KL balancing with free nats (Eq. 5): `dyn` and `rep`, [B, T] each.

  Args:
    post: Posterior over [B, T, S, C].
    prior: Prior over [B, T, S, C].
    free_nats: Nats below which there is no gradient.
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


def imagination(
  actions: Mapping[str, jax.Array],
  reward: jax.Array,
  cont: jax.Array,
  policy: Policy,
  value: TwoHot,
  value_mean: jax.Array,
  slow_mean: jax.Array,
  retnorm: normalizer.State,
  config: Any,
) -> tuple[Losses, jax.Array, normalizer.State, Metrics]:
  """Actor and critic losses on imagined trajectories (Eqs. 7, 8, 11).

  Time comes first here, as the rollout wrote it.

  Args:
    actions: [H, N, ...] per key, without gradients.
    reward: [H + 1, N] predicted rewards.
    cont: [H + 1, N] predicted continue probabilities, discount included.
    policy: At the first H features.
    value: Fast critic there.
    value_mean: [H + 1, N] its predictions.
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
    # Both moments in one go: what is split over devices is summed once.
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
  last: jax.Array,
  term: jax.Array,
  reward: jax.Array,
  boot: jax.Array,
  value: TwoHot,
  slow_mean: jax.Array,
  config: Any,
) -> jax.Array:
  """Critic loss on replayed rewards, bootstrapped by imagined returns.

  Args:
    last: [B, T] true where an episode ends for any reason.
    term: [B, T] true where it terminated.
    reward: [B, T] replayed rewards.
    boot: [B, T] imagined return from each replayed state.
    value: Fast critic at the replayed features; gradients reach them.
    slow_mean: [B, T] predictions of the slow critic.
    config: `agent` of the configuration.

  Returns:
    float32 [B, T - 1].
  """
  discount = 1 - 1 / config.horizon
  returns = lambda_return(last, term, reward, boot, discount, config.lam)
  weight = 1 - last.astype(jnp.float32)
  value = TwoHot(logits=value.logits[:, :-1])
  return weight[:, :-1] * value_loss(value, slow_mean[:, :-1], returns)


def value_loss(
  value: TwoHot, slow_mean: jax.Array, returns: jax.Array
) -> jax.Array:
  """Cross entropy to the return and to the slow critic; float32 as `returns`.

  Args:
    value: Fast critic at some steps.
    slow_mean: Predictions of the slow critic there.
    returns: Returns from there.
  """
  return value.loss(returns, slow_mean)
