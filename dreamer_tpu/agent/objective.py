"""What an update minimizes: the losses of world model, actor and critic."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from dreamer_tpu.agent import imagination, layers, losses, spaces
from dreamer_tpu.agent.distributions import Categorical, TwoHot

Tree = dict[str, Any]
sg = jax.lax.stop_gradient
scope = jax.named_scope  # profiles tell an update's parts by it


@struct.dataclass
class Outcome:
  """What goes along with a loss.

  Attributes:
    states: Posterior states [B, T, ...], as `RSSM.observe` has them.
    priority: float32 [B, T] the world model's loss of every step.
    retnorm: The new state of the return normalizer.
    terms: The unscaled terms, float32 arrays.
    imagined: Per action key, and 'return', [H, N, ...].
    metrics: Scalars.
  """

  states: Tree
  priority: jax.Array
  retnorm: Tree
  terms: Tree
  imagined: Tree
  metrics: Tree


class Objective:
  """The loss as a function of the parameters.

  Args:
    config: `agent` of the configuration.
    act_space: Per action key.
    modules: From parameters by name to modules by name.
  """

  def __init__(
    self,
    config: Any,
    act_space: Mapping[str, spaces.Space],
    modules: Callable[[Tree], Any],
  ):
    self.config = config
    self.act_space = act_space
    self._modules = modules

  def __call__(
    self,
    params: Tree,
    slow_value: Tree,
    retnorm: Tree,
    start: Tree,
    obs: Mapping[str, jax.Array],
    last_action: Tree,
    key: jax.Array | None,
  ) -> tuple[jax.Array, Outcome]:
    """The scaled sum of all terms, and what goes along with it.

    Args:
      params: Of all networks.
      slow_value: Parameters of the slow critic.
      retnorm: State of the return normalizer.
      start: `deter` [B, D] and `stoch` [B, S, C] before the first step.
      obs: [B, T, ...] observations, actions, reward and flags.
      last_action: [B, T, ...] per action key, the one before each step.
      key: PRNG key, or None to take modes.
    """
    model = self._modules(params)
    keys = imagination.split(key)
    states, terms, metrics = self._world_model(
      model, start, obs, last_action, keys[0]
    )
    scaled = [self._weight(k) * v for k, v in terms.items()]
    priority = sg(sum(scaled).astype(jnp.float32))
    rollout = self._imagine(params, states, keys[1])
    with scope('actor_critic'):
      actor_terms, imagined, critics, retnorm, actor_metrics = (
        self._actor_critic(params, slow_value, retnorm, rollout, key)
      )
      terms |= actor_terms
      terms['repval'] = self._replay_value(
        params, obs, model.rssm.feat(states), imagined['return'][0], critics
      )
    loss: Any = sum(self.scale(terms).values())
    metrics |= actor_metrics
    metrics |= {f'loss/{k}': v.mean() for k, v in terms.items()}
    metrics['loss/total'] = loss
    return loss, Outcome(
      states=states,
      priority=priority,
      retnorm=retnorm,
      terms=terms,
      imagined=imagined,
      metrics=metrics,
    )

  def scale(self, terms: Tree) -> Tree:
    """The scaled mean of each term."""
    return {k: self._weight(k) * v.mean() for k, v in terms.items()}

  def _weight(self, term: str) -> float:
    return getattr(self.config.loss_scales, term.partition('/')[0])

  def _world_model(self, model, start, obs, last_action, key):
    """Posterior states of a batch and the losses of the world model."""
    # What images become on their way is large and quick to compute again.
    again = jax.checkpoint if self.config.remat else lambda fn: fn
    with scope('encoder'):
      tokens = again(lambda: model.encoder(obs))()
    with scope('observe'):
      action = spaces.concat(self.act_space, last_action)
      _, states = model.rssm.observe(
        start, tokens, action, obs['is_first'], key
      )
    with scope('dynamics'):
      terms, metrics = losses.dynamics(
        Categorical.from_logp(states['logp']),
        model.rssm.prior_of(states['deter']),
        self.config.rssm.free_nats,
      )
    feat = model.rssm.feat(states)
    with scope('decoder'):
      decoded = again(lambda *feat: model.decoder.losses(*feat, obs))(*feat)
    terms |= {f'decoder/{k}': v for k, v in decoded.items()}
    with scope('outcomes'):
      terms['reward'] = model.reward(feat).loss(obs['reward'])
      alive = 1 - obs['is_terminal'].astype(jnp.float32)
      alive = alive * (1 - 1 / self.config.horizon)
      terms['cont'] = model.cont(feat).loss(alive)
    return states, terms, metrics

  def _imagine(self, params, states, key):
    """See `imagination.rollout`, from every replayed state on."""
    start = {
      k: sg(states[k].reshape(-1, *states[k].shape[2:]))
      for k in ('deter', 'stoch')
    }
    frozen = self._modules(layers.cast(sg(params), start['deter'].dtype))
    with scope('imagine'):
      return imagination.rollout(
        frozen.rssm,
        frozen.policy,
        self.act_space,
        start,
        self.config.imag_length,
        key,
      )

  def _actor_critic(self, params, slow_value, retnorm, rollout, key):
    """Losses of actor and critic in imagination."""
    feats, actions, linear, last = rollout
    model, frozen = self._modules(params), self._modules(sg(params))
    policy, value = model.policy(feats, linear), model.value(feats)
    slow = self._modules({'value': slow_value}).value
    slow_mean = extend(lambda x: slow(x).mean(), feats, last)
    if key is None:  # rounding aside, a mode has no gradient of its mean
      actions = policy.choose(None)
    terms, returns, retnorm, metrics = losses.imagination(
      actions,
      extend(lambda x: frozen.reward(x).mean(), feats, last),
      extend(lambda x: frozen.cont(x).prob(), feats, last),
      policy,
      value,
      jnp.concatenate([value.mean(), frozen.value(last).mean()[None]]),
      slow_mean,
      retnorm,
      self.config,
    )
    imagined = {**actions, 'return': returns}
    critics = (value.logits[0], slow_mean[0])
    return terms, imagined, critics, retnorm, metrics

  def _replay_value(self, params, obs, feat, returns, critics):
    """The critic's loss on replayed rewards.

    Weights learn from the product with all features, imagined and replayed; a
    second one with the latter would be a second gradient to sum up over
    devices. It has no gradient for the features: a frozen critic has it.
    """
    shape = obs['is_first'].shape
    value = critics[0].reshape(*shape, -1)
    frozen = self._modules({'value': sg(params['value'])}).value
    return losses.replay_value(
      obs['is_last'],
      obs['is_terminal'],
      obs['reward'],
      returns.reshape(shape),
      TwoHot(logits=frozen(feat).logits + (value - sg(value))),
      critics[1].reshape(shape),
      self.config,
    )


def extend(fn: Callable, xs: Any, x: Any) -> jax.Array:
  """`fn` of H steps and of one more, [H + 1, N]."""
  return jnp.concatenate([fn(xs), fn(x)[None]])
