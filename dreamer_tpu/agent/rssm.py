"""The world model's state and how it moves on.

The state of a sequence is `deter` [B, D] and `stoch` [B, S, C], a one-hot per
row of C classes. The loop over time does only what is recurrent: action and
token projections, noise and the prior are computed for all steps at once.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from dreamer_tpu.agent import layers, recurrence, transition
from dreamer_tpu.agent.distributions import Categorical
from dreamer_tpu.agent.ops import placement

State = dict[str, jax.Array]
sg = jax.lax.stop_gradient


class RSSM(nnx.Module):
  """Recurrent state-space model with a block GRU (Appendix B)."""

  def __init__(
    self,
    tokens: int,
    action: int,
    config: Any,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    self.deter = config.deter
    self.stoch = (config.stoch, config.classes)
    self.hidden = config.hidden
    self.blocks = config.blocks
    self.unimix = config.unimix
    self.dtype = dtype
    kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    flat = config.stoch * config.classes
    units = config.hidden
    self.in_deter = layers.Layer(self.deter, units, **kw)
    self.in_stoch = layers.Layer(flat, units, **kw)
    self.in_action = layers.Layer(action, units, **kw)
    self.dyn_layers = config.dyn_layers
    inputs = self.deter + self.blocks * 3 * units
    for i in range(config.dyn_layers):
      hidden = layers.BlockLinear(inputs, self.deter, self.blocks, **kw)
      setattr(self, f'hidden{i}', hidden)
      norm = layers.Norm(self.deter, axes=('block_units',))
      setattr(self, f'hidden{i}_norm', norm)
      inputs = self.deter
    self.gru = layers.BlockLinear(inputs, 3 * self.deter, self.blocks, **kw)
    self.prior = layers.MLP(self.deter, units, config.prior_layers, **kw)
    self.prior_logits = layers.Linear(
      units, flat, axes=('features', 'stoch'), **kw
    )
    self.post = layers.MLP(self.deter + tokens, units, config.post_layers, **kw)
    self.post_logits = layers.Linear(
      units, flat, axes=('features', 'stoch'), **kw
    )

  @property
  def feat_size(self) -> int:
    """Size of `feat`."""
    return self.deter + self.stoch[0] * self.stoch[1]

  def initial(self, batch: int) -> State:
    """The state before the first step: all zeros."""
    return {
      'deter': jnp.zeros((batch, self.deter), self.dtype),
      'stoch': jnp.zeros((batch, *self.stoch), self.dtype),
    }

  def observe(
    self,
    state: State,
    tokens: jax.Array,
    action: jax.Array,
    reset: jax.Array,
    key: jax.Array | None,
  ) -> tuple[State, State]:
    """Posterior states of T observed steps (Eq. 3).

    Args:
      state: `deter` [B, D] and `stoch` [B, S, C] before the first step.
      tokens: [B, T, F] from the encoder.
      action: float32 [B, T, A], the action that led to each step.
      reset: bool [B, T], true where an episode starts.
      key: PRNG key, or None to take modes.

    Returns:
      The last state, and `deter` [B, T, D], `stoch` [B, T, S, C] and `logp`
      float32 [B, T, S, C] of the posterior at all steps.
    """
    chex.assert_rank([tokens, action, reset], [3, 3, 2])
    action = action * ~reset[..., None]
    noise = self.noise(key, tokens.shape[:2])
    action_part, token_part, keep, noise = jax.tree.map(
      time_first,
      (
        self._action_layer()(action),
        self._token_part(tokens),
        (~reset).astype(self.dtype),
        noise,
      ),
    )
    deter, logits, chosen = recurrence.observe(
      self.stoch[1],
      self.unimix,
      self._weights(),
      state['deter'],
      flatten(state['stoch']),
      recurrence.Inputs(
        action=action_part,
        token=token_part,
        keep=keep,
        noise=noise,
      ),
    )
    deter, logits, chosen = map(time_first, (deter, logits, chosen))
    post = self._categorical(logits)
    stoch = post.straight_through(chosen).astype(self.dtype)
    states = {'deter': deter, 'stoch': stoch, 'logp': post.logp}
    last = {'deter': deter[:, -1], 'stoch': stoch[:, -1]}
    return last, states

  def imagine(self) -> Callable[[State, jax.Array, Any], State]:
    """One step of the prior, as a function of state, action and noise.

    Whatever is the same in all steps is computed here. The function takes and
    returns `deter` [B, D], `by_block` and `stoch` [B, S, C], see `by_block`;
    the action is float32 [B, A]; `noise` [B, S] as from `noise`, or None to
    take modes.
    """
    weights, action_layer = self._weights(), self._action_layer()

    def step(state, action, noise):
      by_block, _ = transition.step(
        weights,
        state['deter'],
        state['by_block'],
        flatten(state['stoch']),
        action_layer(action),
      )
      deter = layers.from_blocks(by_block)
      index = self.prior_of(deter).sample(noise)
      stoch = jax.nn.one_hot(index, self.stoch[1], dtype=self.dtype)
      return {'deter': deter, 'by_block': by_block, 'stoch': stoch}

    return step

  def noise(
    self, key: jax.Array | None, batch: tuple[int, ...]
  ) -> jax.Array | None:
    """What sampling `stoch` takes: float32 [*batch, S], or None without key."""
    if key is None:
      return None
    return Categorical.noise(key, (*batch, self.stoch[0]))

  def by_block(self, state: State) -> State:
    """The same state with `by_block` [g, B, D / g], which is `deter` cut."""
    by_block = layers.to_blocks(state['deter'], self.blocks)
    return {**state, 'by_block': by_block}

  def prior_of(self, deter: jax.Array) -> Categorical:
    """The prior over `stoch`, [..., S, C], given `deter` [..., D] (Eq. 3)."""
    return self._categorical(self.prior_logits(self.prior.of_state(deter)))

  def feat(self, state: State) -> tuple[jax.Array, jax.Array]:
    """[..., D] and [..., S * C]: what all heads see."""
    deter, stoch = state['deter'], flatten(state['stoch'])
    rows = ['any'] * (deter.ndim - 1)
    return (
      placement.with_logical_constraint(deter, *rows, 'block_units'),
      placement.with_logical_constraint(stoch, *rows, 'units'),
    )

  def _categorical(self, logits: jax.Array) -> Categorical:
    logits = logits.reshape(*logits.shape[:-1], *self.stoch)
    return Categorical.create(logits, self.unimix)

  def _action_layer(self) -> Callable[[jax.Array], jax.Array]:
    """What an action adds to the first hidden layer, bias included."""
    kernel = self._hidden_kernels()[2]
    bias = self._hidden(0)[0].bias[...].astype(self.dtype)

    def layer(action):
      action = action / sg(jnp.maximum(1.0, jnp.abs(action)))
      action = self.in_action(action.astype(self.dtype))
      return layers.product(action, kernel) + bias

    return layer

  def _hidden_kernels(self) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first hidden kernel cut by input: deter, state, action.

    Every block sees its own slice of `deter`, [g, D / g, D / g], and all of
    the three inputs, [2 H, D] and [H, D].
    """
    kernel = self._hidden(0)[0].kernel[...].astype(self.dtype)
    own = self.deter // self.blocks
    shared = jnp.swapaxes(kernel[:, own:], 0, 1).reshape(-1, self.deter)
    shared, action = jnp.split(shared, [2 * self.hidden])
    return kernel[:, :own], shared, action

  def _weights(self) -> transition.Weights:
    """What the recurrence takes of the parameters, in the compute dtype."""
    own, shared, _ = self._hidden_kernels()
    first = self.post.layer(0)
    weights = transition.Weights(
      deter=self._dense(self.in_deter.linear, self.in_deter.norm),
      stoch=self._dense(self.in_stoch.linear, self.in_stoch.norm),
      own=own,
      shared=shared,
      hidden_scale=self._block_scale(self._hidden(0)[1]),
      hidden=tuple(
        self._block_dense(*self._hidden(i)) for i in range(1, self.dyn_layers)
      ),
      gates=self._block_linear(self.gru),
      post=first.linear.kernel[...][: self.deter].astype(self.dtype),
      post_scale=first.norm.scale[...],
      post_rest=tuple(
        self._dense(x.linear, x.norm)
        for x in map(self.post.layer, range(1, self.post.layers))
      ),
      logits=self._linear(self.post_logits),
    )
    return transition.place(weights)

  def _hidden(self, i: int) -> tuple[layers.BlockLinear, layers.Norm]:
    return getattr(self, f'hidden{i}'), getattr(self, f'hidden{i}_norm')

  def _dense(self, linear, norm) -> transition.Dense:
    return transition.Dense(*self._linear(linear), scale=norm.scale[...])

  def _block_dense(self, linear, norm) -> transition.Dense:
    scale = self._block_scale(norm)
    return transition.Dense(*self._block_linear(linear), scale=scale)

  def _linear(self, layer) -> tuple[jax.Array, jax.Array]:
    kernel, bias = layer.kernel[...], layer.bias[...]
    return kernel.astype(self.dtype), bias.astype(self.dtype)

  def _block_linear(self, layer) -> tuple[jax.Array, jax.Array]:
    kernel, bias = self._linear(layer)
    return kernel, bias.reshape(self.blocks, 1, -1)

  def _block_scale(self, norm: layers.Norm) -> jax.Array:
    return norm.scale[...].reshape(self.blocks, 1, -1)

  def _token_part(self, tokens: jax.Array) -> jax.Array:
    """What the tokens add to the first posterior layer, bias included."""
    linear = self.post.layer(0).linear
    kernel = linear.kernel[...][self.deter :].astype(self.dtype)
    bias = linear.bias[...].astype(self.dtype)
    return layers.product(tokens, kernel) + bias


def flatten(stoch: jax.Array) -> jax.Array:
  """[..., S, C] -> [..., S * C]."""
  return stoch.reshape(*stoch.shape[:-2], -1)


def time_first(x: jax.Array) -> jax.Array:
  """Swaps batch and time: [B, T, ...] <-> [T, B, ...]."""
  return jnp.swapaxes(x, 0, 1)
