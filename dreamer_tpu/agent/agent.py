"""The agent: pure functions from states and batches to new states."""

import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dreamer_tpu.agent import (
  imagination,
  losses,
  normalizer,
  openloop,
  optimizer,
  spaces,
)
from dreamer_tpu.agent.distributions import Categorical, TwoHot
from dreamer_tpu.agent.heads import ScalarHead
from dreamer_tpu.agent.model import Model

Tree = dict[str, Any]
Batch = Mapping[str, jax.Array]
sg = jax.lax.stop_gradient


class Agent:
  """DreamerV3 as functions that `jax.jit` may compile.

  The state is a nested dict of arrays: `params`, `slow_value`, `opt`,
  `retnorm`, and the int32 counters `step` (updates) and `skipped`. The carry
  of sequences is `deter` [N, D], `stoch` [N, S] class indices and `action`
  per key, the last action.

  Args:
    obs_space: Per observation key.
    act_space: Per action key.
    config: `agent` of the configuration.
    dtype: Compute dtype, float32 or bfloat16.
    context: Steps at the start of a replayed sequence whose stored latents
      replace the carry.
  """

  def __init__(
    self,
    obs_space: Mapping[str, spaces.Space],
    act_space: Mapping[str, spaces.Space],
    config: Any,
    *,
    dtype: jnp.dtype = jnp.float32,
    context: int = 1,
  ):
    spaces.check(obs_space, act_space)
    self.obs_space = dict(sorted(obs_space.items()))
    self.act_space = dict(sorted(act_space.items()))
    self.config = config
    self.dtype = jnp.dtype(dtype)
    self.context = context
    self.optimizer = optimizer.make(config.opt)
    model = nnx.eval_shape(lambda: self._make_model(jax.random.key(0)))
    self.variables = nnx.state(model, nnx.Param)
    self._graphs = {
      name: nnx.split(getattr(model, name), nnx.Param)[0]
      for name in self.variables
    }

  def _make_model(self, key: jax.Array) -> Model:
    return Model(
      self.obs_space,
      self.act_space,
      self.config,
      dtype=self.dtype,
      rngs=nnx.Rngs(params=key),
    )

  def _model(self, params: Tree) -> Any:
    """The modules for which there are parameters, under their names."""
    modules = {k: nnx.merge(self._graphs[k], v) for k, v in params.items()}
    return types.SimpleNamespace(**modules)

  def init(self, key: jax.Array) -> Tree:
    """A fresh state; run it under `jax.jit` with out-shardings."""
    _, variables = nnx.split(self._make_model(key), nnx.Param)
    params = nnx.to_pure_dict(variables)
    return {
      'params': params,
      'slow_value': jax.tree.map(jnp.copy, params['value']),
      'opt': self.optimizer.init(params),
      'retnorm': normalizer.init(),
      'step': jnp.zeros((), jnp.int32),
      'skipped': jnp.zeros((), jnp.int32),
    }

  def initial_carry(self, batch: int) -> Tree:
    """The carry of `batch` sequences before their first step."""
    rssm = self.config.rssm
    return {
      'deter': jnp.zeros((batch, rssm.deter), self.dtype),
      'stoch': jnp.zeros((batch, rssm.stoch), jnp.uint8),
      'action': {
        k: jnp.zeros((batch, *v.shape), v.dtype)
        for k, v in self.act_space.items()
      },
    }

  def latent_spec(self) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of the latents that replay stores with every step."""
    rssm = self.config.rssm
    return {
      'latent/deter': ((rssm.deter,), self.dtype.name),
      'latent/stoch': ((rssm.stoch,), 'uint8'),
    }

  def policy(
    self,
    params: Tree,
    carry: Tree,
    obs: Batch,
    key: jax.Array | None,
    *,
    mode: bool = False,
  ) -> tuple[Tree, Tree, Tree]:
    """One step of acting.

    Args:
      params: Parameters of at least the encoder, rssm and policy.
      carry: Of N environments.
      obs: [N, ...] per observation key, and `is_first` bool [N].
      key: PRNG key, or None to take modes.
      mode: Whether to take the policy's mode instead of a sample.

    Returns:
      The new carry, the action [N, ...] per key, and the latents to store:
      'latent/deter' [N, D] and 'latent/stoch' uint8 [N, S].
    """
    model = self._model(params)
    state_key, action_key = imagination.split(key)
    obs = {k: v[:, None] for k, v in obs.items()}
    state, last_action = self._unpack(carry)
    _, states = model.rssm.observe(
      state,
      model.encoder(obs),
      spaces.concat(self.act_space, last_action)[:, None],
      obs['is_first'],
      state_key,
    )
    state = jax.tree.map(lambda x: x[:, 0], states)
    dist = model.policy(model.rssm.feat(state))
    action = dist.sample(None if mode else action_key)
    carry = self._pack(state, action)
    latents = {f'latent/{k}': carry[k] for k in ('deter', 'stoch')}
    return carry, action, latents

  def train(
    self,
    state: Tree,
    carry: Tree,
    batch: Batch,
    key: jax.Array | None,
  ) -> tuple[Tree, Tree, Tree, Tree]:
    """One update of all networks.

    Args:
      state: Of the agent.
      carry: From the previous consecutive part of the same sequences.
      batch: [B, K + T, ...] observations, actions, reward, is_first, is_last,
        is_terminal, the latents if K > 0, and `consec` int32 [B], 0 where a
        sequence starts; K = `context`.
      key: PRNG key, or None to take modes.

    Returns:
      The new state and carry, what is to write back for every step [B, T,
      ...] (the fresh latents, and 'priority', its loss of the world model,
      float32 [B, T]), and scalar metrics.
    """
    carry, obs, last_action = self._contextualize(carry, batch)

    def loss_fn(params):
      return self._loss(
        params,
        state['slow_value'],
        state['retnorm'],
        carry,
        obs,
        last_action,
        key,
      )

    (_, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state['params'])
    carry, latents, retnorm, metrics, _ = aux
    new, opt_metrics = self._apply(state, grads, retnorm)
    return new, carry, latents, {**metrics, **opt_metrics}

  def report(
    self, state: Tree, carry: Tree, batch: Batch, key: jax.Array
  ) -> tuple[Tree, Tree, Tree]:
    """Losses of a batch without an update, and what to look at.

    Takes the arguments of `train`.

    Returns:
      The new carry, scalar metrics, and arrays: the videos 'openloop/KEY'
      uint8 [T, H, W, 3] per image key, and 'imagined/return' and
      'imagined/KEY' per action key, [n] values for histograms.
    """
    carry, obs, last_action = self._contextualize(carry, batch)
    loss_key, video_key = jax.random.split(key)

    _, (new_carry, _, _, metrics, (_, _, imagined)) = self._loss(
      state['params'],
      state['slow_value'],
      state['retnorm'],
      carry,
      obs,
      last_action,
      loss_key,
    )
    videos = openloop.videos(
      self._model(state['params']),
      self._unpack(carry)[0],
      obs,
      spaces.concat(self.act_space, last_action),
      video_key,
    )
    values = {f'imagined/{k}': v.ravel() for k, v in imagined.items()}
    return new_carry, metrics, {**videos, **values}

  def gradient_norm(
    self, state: Tree, carry: Tree, batch: Batch, key: jax.Array, term: Any
  ) -> jax.Array:
    """The norm, over all parameters, of the gradient of one scaled term.

    Takes the arguments of `report` and sees the same losses, and:

    Args:
      term: int32, which one of the sorted names of terms.
    """
    carry, obs, last_action = self._contextualize(carry, batch)
    loss_key, _ = jax.random.split(key)

    def loss_fn(params):
      _, aux = self._loss(
        params,
        state['slow_value'],
        state['retnorm'],
        carry,
        obs,
        last_action,
        loss_key,
      )
      scaled = self._scale(aux[-1][0])
      return jnp.stack([scaled[k] for k in sorted(scaled)])[term]

    return optax.tree.norm(jax.grad(loss_fn)(state['params']))

  def _contextualize(
    self, carry: Tree, batch: Batch
  ) -> tuple[Tree, Tree, Tree]:
    """Cuts the context off and starts new sequences from stored latents."""
    k = self.context
    obs = {name: x[:, k:] for name, x in batch.items() if name != 'consec'}
    actions = {name: batch[name] for name in self.act_space}
    if k:
      stored = {
        'deter': batch['latent/deter'][:, k - 1],
        'stoch': batch['latent/stoch'][:, k - 1],
        'action': {name: x[:, k - 1] for name, x in actions.items()},
      }
      fresh = batch['consec'] == 0
      carry = jax.tree.map(
        lambda new, old: jnp.where(
          fresh.reshape(-1, *[1] * (new.ndim - 1)), new, old
        ),
        stored,
        carry,
      )
    last_action = {
      name: jnp.concatenate([carry['action'][name][:, None], x[:, k:-1]], 1)
      for name, x in actions.items()
    }
    return carry, obs, last_action

  def _unpack(self, carry: Tree) -> tuple[Tree, Tree]:
    classes = self.config.rssm.classes
    stoch = jax.nn.one_hot(carry['stoch'], classes, dtype=self.dtype)
    state = {'deter': carry['deter'].astype(self.dtype), 'stoch': stoch}
    return state, carry['action']

  def _pack(self, state: Tree, action: Tree) -> Tree:
    stoch = jnp.argmax(state['stoch'], -1).astype(jnp.uint8)
    return sg({'deter': state['deter'], 'stoch': stoch, 'action': action})

  def _loss(
    self,
    params,
    slow_value,
    retnorm,
    carry,
    obs,
    last_action,
    key,
  ) -> tuple[jax.Array, tuple]:
    """The scaled sum of all terms, and what goes along with it."""
    model = self._model(params)
    keys = imagination.split(key)
    start, _ = self._unpack(carry)
    states, terms, metrics = self._world_model(
      model, start, obs, last_action, keys[0]
    )
    actor_terms, imagined, critics, retnorm, actor_metrics = self._actor_critic(
      params, slow_value, retnorm, states, keys[1]
    )
    scaled = [self._weight(k) * v for k, v in terms.items()]
    priority = sg(sum(scaled).astype(jnp.float32))
    terms |= actor_terms
    shape = obs['is_first'].shape
    value = critics[0].reshape(*shape, -1)
    # Weights learn from the product with all features, imagined and replayed;
    # a second one with the latter would be a second gradient to sum up over
    # devices. It has no gradient for the features: a frozen critic has it.
    frozen = self._model({'value': sg(params['value'])}).value
    logits = frozen(model.rssm.feat(states)).logits + (value - sg(value))
    terms['repval'] = losses.replay_value(
      obs['is_last'],
      obs['is_terminal'],
      obs['reward'],
      imagined['return'][0].reshape(shape),
      TwoHot(logits=logits),
      critics[1].reshape(shape),
      self.config,
    )
    loss: Any = sum(self._scale(terms).values())
    action = {k: obs[k] for k in self.act_space}
    latents = self._pack(states, {})
    carry = jax.tree.map(lambda x: x[:, -1], {**latents, 'action': action})
    latents = {f'latent/{k}': latents[k] for k in ('deter', 'stoch')}
    latents['priority'] = priority
    metrics |= actor_metrics
    metrics |= {f'loss/{k}': v.mean() for k, v in terms.items()}
    metrics['loss/total'] = loss
    extra = (terms, states, imagined)
    return loss, (carry, latents, retnorm, metrics, extra)

  def _scale(self, terms: Tree) -> Tree:
    """The scaled mean of each term."""
    return {k: self._weight(k) * v.mean() for k, v in terms.items()}

  def _weight(self, term: str) -> float:
    return getattr(self.config.loss_scales, term.partition('/')[0])

  def _world_model(self, model, start, obs, last_action, key):
    """Posterior states of a batch and the losses of the world model."""
    # What images become on their way is large and quick to compute again.
    again = jax.checkpoint if self.config.remat else lambda fn: fn
    tokens = again(lambda: model.encoder(obs))()
    action = spaces.concat(self.act_space, last_action)
    _, states = model.rssm.observe(start, tokens, action, obs['is_first'], key)
    terms, metrics = losses.dynamics(
      Categorical.from_logp(states['logp']),
      model.rssm.prior_of(states['deter']),
      self.config.rssm.free_nats,
    )
    feat = model.rssm.feat(states)
    stoch = feat[..., model.rssm.deter :]
    decoded = again(
      lambda *state: model.decoder.loss(model.decoder(*state), obs)
    )(states['deter'], stoch)
    terms |= {f'decoder/{k}': v for k, v in decoded.items()}
    terms['reward'] = model.reward(feat).loss(obs['reward'])
    alive = 1 - obs['is_terminal'].astype(jnp.float32)
    terms['cont'] = model.cont(feat).loss(alive * (1 - 1 / self.config.horizon))
    return states, terms, metrics

  def _actor_critic(self, params, slow_value, retnorm, states, key):
    """Losses of actor and critic in imagination from every replayed state."""
    model = self._model(params)
    start = {
      k: sg(states[k].reshape(-1, *states[k].shape[2:]))
      for k in ('deter', 'stoch')
    }
    frozen = self._model(sg(params))
    feats, actions, last = imagination.rollout(
      frozen.rssm,
      frozen.policy,
      self.act_space,
      start,
      self.config.imag_length,
      key,
    )
    policy, value = model.policy(feats), model.value(feats)
    slow = self._slow(slow_value)
    slow_mean = extend(lambda x: slow(x).mean(), feats, last)
    if key is None:  # rounding aside, a mode has no gradient of its mean
      actions = policy.sample(None)
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

  def _slow(self, slow_value: Tree) -> ScalarHead:
    return nnx.merge(self._graphs['value'], slow_value)

  def _apply(
    self, state: Tree, grads: Tree, retnorm: Tree
  ) -> tuple[Tree, Tree]:
    """The optimizer step; a non-finite gradient leaves the state as it is."""
    culprit = optimizer.first_nonfinite(grads)
    finite = culprit < 0
    updates, opt = self.optimizer.update(grads, state['opt'], state['params'])
    params = optax.apply_updates(state['params'], updates)
    slow_value = optax.incremental_update(
      params['value'], state['slow_value'], self.config.slow_value.rate
    )
    new = {
      'params': params,
      'slow_value': slow_value,
      'opt': opt,
      'retnorm': retnorm,
    }
    new = {
      k: jax.tree.map(lambda n, o: jnp.where(finite, n, o), v, state[k])
      for k, v in new.items()
    }
    new['step'] = state['step'] + 1
    new['skipped'] = state['skipped'] + (1 - finite.astype(jnp.int32))
    metrics = {
      **{f'opt/update_rms/{k}': rms(v) for k, v in updates.items()},
      **{f'opt/param_rms/{k}': rms(v) for k, v in params.items()},
      'opt/grad_norm': optax.tree.norm(grads),
      'opt/update_rms': rms(updates),
      'opt/param_rms': rms(params),
      'opt/skipped': new['skipped'],
      'opt/nonfinite': culprit,
    }
    return new, metrics


def rms(tree: Tree) -> jax.Array:
  """Root mean square over all elements of a tree."""
  count = sum(x.size for x in jax.tree.leaves(tree))
  return optax.tree.norm(tree) / jnp.sqrt(count)


def extend(fn: Callable, xs: Any, x: Any) -> jax.Array:
  """`fn` of H steps and of one more: [H, N, ...] and [N, ...] -> [H + 1, N]."""
  return jnp.concatenate([fn(xs), fn(x)[None]])
