"""The agent: pure functions from states and batches to new states."""

import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct

from dreamer_tpu import errors
from dreamer_tpu.agent import (
  imagination,
  layers,
  losses,
  normalizer,
  openloop,
  optimizer,
  spaces,
)
from dreamer_tpu.agent.model import Model
from dreamer_tpu.agent.rssm import Posterior

Tree = dict[str, Any]
Batch = Mapping[str, jax.Array]
sg = jax.lax.stop_gradient


@struct.dataclass
class LossAux:
  """Results of an update besides the loss and its gradients.

  Attributes:
    post: Posterior states [B, T, ...].
    priority: float32 [B, T], the world model's loss of every step.
    terms: float32 losses by term, not scaled.
    imagined: [H, N, ...] per action key, and 'return'.
    retnorm: New state of the return normalizer.
    metrics: Scalars.
  """

  post: Posterior
  priority: jax.Array
  terms: Tree
  imagined: Tree
  retnorm: Tree
  metrics: Tree


class Agent:
  """DreamerV3 as functions to compile with `jax.jit`.

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

  Attributes:
    policy_keys: Keys of the observations that the encoder reads, so that the
      policy needs them.
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
    try:
      model = nnx.eval_shape(lambda: self._make_model(jax.random.key(0)))
    except errors.UserError as error:  # To which JAX has added its own lines.
      raise errors.UserError(*error.args) from None
    self.variables = nnx.state(model, nnx.Param)
    self.policy_keys = model.encoder.keys
    self._graphs = {
      name: nnx.split(getattr(model, name), nnx.Param)[0]
      for name in self.variables
    }
    # A decoder that reconstructs nothing has no parameters.
    bare = 'decoder' not in self.variables
    self._bare = {'decoder': model.decoder} if bare else {}

  def _make_model(self, key: jax.Array) -> Model:
    return Model(
      self.obs_space,
      self.act_space,
      self.config,
      dtype=self.dtype,
      rngs=nnx.Rngs(params=key),
    )

  def _model(self, params: Tree) -> Any:
    """Returns the modules of these parameters, by name."""
    modules = {k: nnx.merge(self._graphs[k], v) for k, v in params.items()}
    return types.SimpleNamespace(**self._bare, **modules)

  def init(self, key: jax.Array) -> Tree:
    """Returns a fresh state; to be jitted with out-shardings."""
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
    """Returns the carry of `batch` sequences before their first step."""
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
    """Returns shape and dtype of the latents that replay stores."""
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
    """Selects an action.

    Args:
      params: Parameters of at least the encoder, rssm and policy.
      carry: Carry of N environments.
      obs: [N, ...] per key of `policy_keys`, and `is_first` bool [N].
      key: PRNG key, or None to take modes.
      mode: Takes the mode of the policy instead of a sample.

    Returns:
      The new carry, the action [N, ...] per key, and the latents to store:
      'latent/deter' [N, D] and 'latent/stoch' uint8 [N, S].
    """
    model = self._model(params)
    state_key, action_key = imagination.split(key)
    obs = {k: v[:, None] for k, v in obs.items()}
    state, last_action = self._unpack(carry)
    post = model.rssm.observe(
      state,
      model.encoder(obs),
      spaces.concat(self.act_space, last_action)[:, None],
      obs['is_first'],
      state_key,
    )
    noise = model.policy.noise(
      None if mode else action_key, obs['is_first'].shape[:1]
    )
    feat = model.rssm.feat(post.deter[:, 0], post.stoch[:, 0])
    action = model.policy(feat).sample(noise)
    latents = jax.tree.map(lambda x: x[:, 0], _latents(post))
    carry = {**latents, 'action': action}
    return carry, action, {f'latent/{k}': v for k, v in latents.items()}

  def observe(
    self, params: Tree, carry: Tree, batch: Tree, key: jax.Array | None
  ) -> tuple[Tree, Tree]:
    """Infers the latents of recorded steps.

    Args:
      params: Parameters of at least the encoder and rssm.
      carry: Carry of N sequences.
      batch: [N, T, ...] per key of `policy_keys` and per action key, and
        `is_first` bool [N, T].
      key: PRNG key, or None to take modes.

    Returns:
      The new carry, and the latents to store: 'latent/deter' [N, T, D] and
      'latent/stoch' uint8 [N, T, S].
    """
    model = self._model(params)
    state, action = self._unpack(carry)
    post = model.rssm.observe(
      state,
      model.encoder({k: batch[k] for k in self.policy_keys}),
      spaces.concat(self.act_space, self._last_action(action, batch)),
      batch['is_first'],
      key,
    )
    latents = {f'latent/{k}': v for k, v in _latents(post).items()}
    return self._last_carry(post, batch), latents

  def train(
    self,
    state: Tree,
    carry: Tree,
    batch: Batch,
    key: jax.Array | None,
  ) -> tuple[Tree, Tree, Tree, Tree]:
    """Updates all networks.

    Args:
      state: State of the agent.
      carry: Carry after the previous part of the sequences, if they are trained
        in consecutive parts.
      batch: [B, K + T, ...] observations, actions, reward, is_first, is_last,
        is_terminal, the latents if K > 0, and `consec` int32 [B], 0 where a
        sequence starts; K = `context`.
      key: PRNG key, or None to take modes.

    Returns:
      The new state and carry; the latents [B, T, ...] to write back to the
      replay, and 'priority' float32 [B, T], the world model's loss of every
      step; and scalar metrics.
    """
    carry, obs, last_action = self._contextualize(carry, batch)
    (_, aux), grads = jax.value_and_grad(
      lambda params: self._loss(params, state, carry, obs, last_action, key),
      has_aux=True,
    )(state['params'])
    latents = {f'latent/{k}': v for k, v in _latents(aux.post).items()}
    latents['priority'] = aux.priority
    with jax.named_scope('optimizer'):
      new, metrics = self._apply(state, grads, aux.retnorm)
    carry = self._last_carry(aux.post, obs)
    return new, carry, latents, {**aux.metrics, **metrics}

  def report(
    self, state: Tree, carry: Tree, batch: Batch, key: jax.Array
  ) -> tuple[Tree, Tree, Tree]:
    """Computes losses of a batch without an update, videos and histograms.

    Takes the arguments of `train`.

    Returns:
      The new carry, scalar metrics, and arrays: the videos 'openloop/KEY'
      uint8 [T, H, W, 3] per image key, and 'imagined/return' and
      'imagined/KEY' per action key, [n] values for histograms.
    """
    carry, obs, last_action = self._contextualize(carry, batch)
    loss_key, video_key = jax.random.split(key)
    _, aux = self._loss(
      state['params'], state, carry, obs, last_action, loss_key
    )
    videos = openloop.videos(
      self._model(state['params']),
      self._unpack(carry)[0],
      obs,
      spaces.concat(self.act_space, last_action),
      video_key,
    )
    values = {f'imagined/{k}': v.ravel() for k, v in aux.imagined.items()}
    carry = self._last_carry(aux.post, obs)
    return carry, aux.metrics, {**videos, **values}

  def gradient_norm(
    self, state: Tree, carry: Tree, batch: Batch, key: jax.Array, term: Any
  ) -> jax.Array:
    """Computes the gradient norm of one scaled term of the loss in `report`.

    Args:
      state: See `report`.
      carry: See `report`.
      batch: See `report`.
      key: See `report`.
      term: int32, index into the sorted names of terms.
    """
    inputs = self._contextualize(carry, batch)
    loss_key, _ = jax.random.split(key)

    def loss_fn(params):
      _, aux = self._loss(params, state, *inputs, loss_key)
      scaled = self._scale(aux.terms)
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
    return carry, obs, self._last_action(carry['action'], obs)

  def _last_action(self, before: Tree, steps: Batch) -> Tree:
    """Returns the actions before each step [B, T, ...], those in it shifted."""
    return {
      name: jnp.concatenate([before[name][:, None], steps[name][:, :-1]], 1)
      for name in self.act_space
    }

  def _unpack(self, carry: Tree) -> tuple[Tree, Tree]:
    classes = self.config.rssm.classes
    stoch = jax.nn.one_hot(carry['stoch'], classes, dtype=self.dtype)
    state = {'deter': carry['deter'].astype(self.dtype), 'stoch': stoch}
    return state, carry['action']

  def _loss(
    self, params, state, carry, obs, last_action, key
  ) -> tuple[jax.Array, LossAux]:
    """Computes the scaled sum of all terms."""
    world_key, imagine_key = imagination.split(key)
    model, frozen = self._model(params), self._model(sg(params))
    post, terms, metrics = losses.world_model(
      model,
      self._unpack(carry)[0],
      obs,
      spaces.concat(self.act_space, last_action),
      world_key,
      self.config,
    )
    priority: Any = sum(self._weight(k) * v for k, v in terms.items())
    with losses.scope('imagine'):
      rollout = self._imagine(params, post, imagine_key)
    with losses.scope('actor_critic'):
      actor_critic_terms, imagined, retnorm, actor_metrics = (
        losses.actor_critic(
          model,
          frozen,
          self._model({'value': state['slow_value']}).value,
          rollout,
          state['retnorm'],
          self.config,
        )
      )
      terms |= actor_critic_terms
      feat = model.rssm.feat(post.deter, post.stoch)
      terms['repval'] = losses.replay_value(
        frozen.value, feat, obs, imagined, self.config
      )
    loss: Any = sum(self._scale(terms).values())
    metrics |= actor_metrics
    metrics |= {f'loss/{k}': v.mean() for k, v in terms.items()}
    return loss, LossAux(
      post=post,
      priority=sg(priority.astype(jnp.float32)),
      terms=terms,
      imagined={**imagined.actions, 'return': imagined.returns},
      retnorm=retnorm,
      metrics={**metrics, 'loss/total': loss},
    )

  def _imagine(self, params, post, key) -> imagination.Rollout:
    """Imagines trajectories from every replayed state."""
    flat = lambda x: sg(x.reshape(-1, *x.shape[2:]))
    model = self._model(layers.cast(sg(params), self.dtype))
    return imagination.rollout(
      model.rssm,
      model.policy,
      self.act_space,
      {'deter': flat(post.deter), 'stoch': flat(post.stoch)},
      self.config.imag_length,
      key,
    )

  def _last_carry(self, post: Posterior, obs: Tree) -> Tree:
    """Returns the carry after the last of T steps."""
    action = {k: obs[k] for k in self.act_space}
    return jax.tree.map(
      lambda x: x[:, -1], {**_latents(post), 'action': action}
    )

  def _scale(self, terms: Tree) -> Tree:
    """Returns the scaled mean of each term."""
    return {k: self._weight(k) * v.mean() for k, v in terms.items()}

  def _weight(self, term: str) -> float:
    return getattr(self.config.loss_scales, term.partition('/')[0])

  def _apply(
    self, state: Tree, grads: Tree, retnorm: Tree
  ) -> tuple[Tree, Tree]:
    """Applies the optimizer, unless a gradient is not finite."""
    culprit = optimizer.first_nonfinite(grads)
    finite = culprit < 0
    updates, opt = self.optimizer.update(grads, state['opt'], state['params'])
    params = optax.apply_updates(state['params'], updates)
    slow_value = optax.incremental_update(
      params['value'], state['slow_value'], self.config.slow_value.rate
    )
    new = dict(params=params, slow_value=slow_value, opt=opt, retnorm=retnorm)
    new = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      new,
      {k: state[k] for k in new},
    )
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
  """Computes the root mean square over all elements of a tree."""
  count = sum(x.size for x in jax.tree.leaves(tree))
  return optax.tree.norm(tree) / jnp.sqrt(count)


def _latents(post: Posterior) -> Tree:
  """Returns `deter` and class indices, as replay stores them."""
  return sg({'deter': post.deter, 'stoch': post.index.astype(jnp.uint8)})
