"""The world model's state and its dynamics.

The state of N sequences is `deter` [N, D] and `stoch` [N, S, C], one-hot rows.
Weights are prepared before loops, which contain only what is recurrent.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx, struct

from dreamer_tpu.agent import layers
from dreamer_tpu.agent.distributions import Categorical
from dreamer_tpu.agent.ops import matmul, placement, scan

Array = jax.Array
State = dict[str, Array]
sg = jax.lax.stop_gradient
constrain = placement.with_logical_constraint


@struct.dataclass
class Posterior:
  """Posterior states of T observed steps.

  Attributes:
    deter: [B, T, D].
    stoch: One-hot samples [B, T, S, C] with straight-through gradients.
    index: int32 [B, T, S], classes of the samples.
    dist: Distribution of `stoch`.
  """

  deter: Array
  stoch: Array
  index: Array
  dist: Categorical


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
    self.units = units = config.hidden
    self.blocks = config.blocks
    self.unimix = config.unimix
    self.dtype = dtype
    kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    flat = config.stoch * config.classes
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
    self.post = layers.MLP(self.deter + tokens, units, config.post_layers, **kw)
    kw |= dict(axes=('features', 'stoch'))
    self.prior_logits = layers.Linear(units, flat, **kw)
    self.post_logits = layers.Linear(units, flat, **kw)

  @property
  def hidden(self) -> list[tuple[layers.BlockLinear, layers.Norm]]:
    """Linear layer and norm of all hidden layers of the GRU."""
    names = [f'hidden{i}' for i in range(self.dyn_layers)]
    return [(getattr(self, x), getattr(self, f'{x}_norm')) for x in names]

  @property
  def feat_size(self) -> int:
    """Size of `feat`."""
    return self.deter + self.stoch[0] * self.stoch[1]

  def core(self) -> Callable[[Array, Array, Array], Array]:
    """Returns one step of the block GRU (Appendix B) as a function.

    It maps `deter` [N, D], flat `stoch` [N, S * C] and an action [N, D] from
    `embed_action` to the next `deter`.
    """
    inputs = layers.prepare_pair(
      self.in_deter, self.in_stoch, ('block_units', 'units')
    )
    norms = [norm.prepare_blocks(self.blocks) for _, norm in self.hidden]
    sizes = self.deter // self.blocks, 2 * self.units
    first = self.hidden[0][0].prepare_split(*sizes).then(norms[0])
    rest = [
      linear.prepare().then(norm)
      for (linear, _), norm in zip(self.hidden[1:], norms[1:], strict=True)
    ]
    gru = self.gru.prepare()

    def step(deter, stoch, action):
      by_block = matmul.to_blocks(deter, self.blocks)
      x = first((by_block, inputs((deter, stoch)), action))
      for hidden in rest:
        x = hidden(x)
      reset, candidate, update = jnp.split(gru(x), 3, -1)
      candidate = jnp.tanh(jax.nn.sigmoid(reset) * candidate)
      update = jax.nn.sigmoid(update - 1)
      by_block = update * candidate + (1 - update) * by_block
      return constrain(matmul.from_blocks(by_block), 'rows', 'block_units')

    return step

  def posterior(self) -> Callable[[Array, Array], Array]:
    """Returns the posterior (Eq. 3) as a function.

    It maps `deter` [N, D] and embedded tokens [N, H] to logits [N, S, C].
    """
    first = self.post.layers[0].prepare_split(self.deter, 'block_units')
    rest = [layer.prepare() for layer in self.post.layers[1:]]
    logits = self.post_logits.prepare(outputs='units')

    def step(deter, tokens):
      x = first((deter, tokens))
      for layer in rest:
        x = layer(x)
      return logits(x).reshape(len(x), *self.stoch)

    return step

  def embed_action(self) -> Callable[[Array], Array]:
    """Returns the projection of actions [..., A] to what `core` adds."""
    _, shared = self.hidden[0][0].split_kernel(self.deter // self.blocks)
    kernel = shared[2 * self.units :]
    bias = self.hidden[0][0].bias[...].astype(self.dtype)

    def embed(action):
      action = action / sg(jnp.maximum(1.0, jnp.abs(action)))
      action = self.in_action(action.astype(self.dtype))
      return matmul.product(action, kernel) + bias

    return embed

  def embed_tokens(self, tokens: Array) -> Array:
    """Projects tokens [..., F] to what `posterior` adds, [..., H]."""
    kernel, bias = self.post.layers[0].linear.weights()
    return matmul.product(tokens, kernel[self.deter :]) + bias

  def observe(
    self,
    state: State,
    tokens: Array,
    action: Array,
    reset: Array,
    key: Array | None,
  ) -> Posterior:
    """Computes posterior states of T observed steps (Eq. 3).

    Args:
      state: `deter` [B, D] and `stoch` [B, S, C] before the first step.
      tokens: [B, T, F] from the encoder.
      action: float32 [B, T, A], the action that led to each step.
      reset: bool [B, T], true where an episode starts.
      key: PRNG key, or None to take modes.
    """
    chex.assert_rank([tokens, action, reset], [3, 3, 2])
    core, posterior = self.core(), self.posterior()

    def step(state, inputs):
      keep, action, tokens, noise = inputs
      deter, stoch = (keep * x for x in state)
      deter = core(deter, stoch, action)
      logits = posterior(deter, tokens)
      dist = Categorical.create(logits, self.unimix)
      stoch = dist.straight_through(dist.sample(noise)).astype(self.dtype)
      stoch = flatten(stoch)
      stoch = constrain(stoch, 'rows', 'units')
      return (deter, stoch), logits

    action = self.embed_action()(action * ~reset[..., None])
    inputs = (
      (~reset).astype(self.dtype)[..., None],
      constrain(action, 'rows', None, 'block_units'),
      constrain(self.embed_tokens(tokens), 'rows', None, None),
      self.noise(key, reset.shape),
    )
    start = state['deter'], flatten(state['stoch'])
    states = scan.scan(step, start, jax.tree.map(swap_time, inputs))
    (deter, stoch), logits = jax.tree.map(swap_time, states)
    stoch = stoch.reshape(logits.shape)
    dist = Categorical.create(logits, self.unimix)
    return Posterior(deter, stoch, jnp.argmax(stoch, -1), dist)

  def imagine(self) -> Callable[[State, Array, Any], State]:
    """Returns one step of the prior as a function.

    It maps a state, a float32 action [N, A] and noise [N, S] from `noise`, or
    None to take modes, to the next state.
    """
    core, embed_action = self.core(), self.embed_action()

    def step(state, action, noise):
      stoch = flatten(state['stoch'])
      deter = core(state['deter'], stoch, embed_action(action))
      index = self.prior_dist(deter).sample(noise)
      stoch = jax.nn.one_hot(index, self.stoch[1], dtype=self.dtype)
      return {'deter': deter, 'stoch': stoch}

    return step

  def prior_dist(self, deter: Array) -> Categorical:
    """Returns the prior over `stoch` [..., S, C] given `deter` (Eq. 3)."""
    logits = self.prior_logits(self.prior.apply_split(deter))
    logits = logits.reshape(*logits.shape[:-1], *self.stoch)
    return Categorical.create(logits, self.unimix)

  def noise(self, key: Array | None, batch: tuple[int, ...]) -> Array | None:
    """Draws float32 noise [*batch, S] to sample `stoch`; None without a key."""
    if key is None:
      return None
    return Categorical.noise(key, (*batch, self.stoch[0]))

  def feat(self, deter: Array, stoch: Array) -> tuple[Array, Array]:
    """Returns the inputs of all heads, [..., D] and [..., S * C]."""
    deter = constrain(deter, 'block_units')
    return deter, constrain(flatten(stoch), 'units')


def flatten(stoch: Array) -> Array:
  """Joins classes: [..., S, C] -> [..., S * C]."""
  return stoch.reshape(*stoch.shape[:-2], -1)


def swap_time(x: Array) -> Array:
  """Swaps batch and time: [B, T, ...] <-> [T, B, ...]."""
  return jnp.swapaxes(x, 0, 1)
