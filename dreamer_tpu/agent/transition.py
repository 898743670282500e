"""One step of the block GRU, its weights, and its gradient.

The blocks come first where layers are block-diagonal: [g, B, units / g]. The
state is carried in both forms, [B, D] and by block: were the gates, which
compute exponentials, only needed transposed, XLA would compute them inside of
the transposition, and on CPU take several times as long.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from dreamer_tpu.agent import layers
from dreamer_tpu.agent.ops import placement

Array = jax.Array
BLOCK_AXES = (-3, -1)  # of one step, blocks and their units


@struct.dataclass
class Dense:
  """Linear, RMSNorm and SiLU; in the compute dtype, but for the scale.

  Attributes:
    kernel: [i, o], or [g, i, o] block-diagonal.
    bias: [o] or [g, 1, o].
    scale: float32, likewise.
  """

  kernel: Array
  bias: Array
  scale: Array

  def linear(self, x: Array) -> Array:
    """[..., i] -> [..., o] or [g, B, i] -> [g, B, o]."""
    return product(x, self.kernel) + self.bias


@struct.dataclass
class Weights:
  """What the loop multiplies by.

  Attributes:
    deter: Input layer of `deter`.
    stoch: Input layer of `stoch`.
    own: [g, D / g, D / g], first hidden kernel for each block's own `deter`.
    shared: [2 H, D], for the two input layers, which all blocks see.
    hidden_scale: float32 [g, 1, D / g], of the first hidden norm.
    hidden: Further hidden layers, block-diagonal.
    gates: Kernel [g, D / g, 3 D / g] and bias [g, 1, 3 D / g].
    post: Kernel [D, H], of the first posterior layer, for `deter`.
    post_scale: float32 [H], of its norm.
    post_rest: Further posterior layers.
    logits: Kernel [H, S C] and bias [S C].
  """

  deter: Dense
  stoch: Dense
  own: Array
  shared: Array
  hidden_scale: Array
  hidden: tuple[Dense, ...]
  gates: tuple[Array, Array]
  post: Array
  post_scale: Array
  post_rest: tuple[Dense, ...]
  logits: tuple[Array, Array]


def place(w: Weights) -> Weights:
  """The weights as the loop takes them when devices share a model.

  Kernels of `deter` and `stoch` are split by inputs, so that every step needs
  three sums over devices: of both input layers at once, of the hidden norm,
  and of the posterior layer. As parameters they are split by outputs.
  """
  by_block = lambda x: placement.with_logical_constraint(
    x, 'blocks', None, None
  )
  same = lambda x: placement.with_logical_constraint(x, *[None] * x.ndim)
  whole = lambda tree: jax.tree.map(same, tree)
  kernel, bias = w.logits
  return Weights(
    deter=whole(w.deter).replace(
      kernel=placement.split_inputs(w.deter.kernel, 'block_units')
    ),
    stoch=whole(w.stoch).replace(
      kernel=placement.split_inputs(w.stoch.kernel, 'units')
    ),
    own=by_block(w.own),
    shared=placement.with_logical_constraint(w.shared, None, 'block_units'),
    hidden_scale=by_block(w.hidden_scale),
    hidden=jax.tree.map(by_block, w.hidden),
    gates=jax.tree.map(by_block, w.gates),
    post=placement.split_inputs(w.post, 'block_units'),
    post_scale=same(w.post_scale),
    post_rest=whole(w.post_rest),
    logits=(
      placement.with_logical_constraint(kernel, None, 'units'),
      placement.with_logical_constraint(bias, 'units'),
    ),
  )


class Products(NamedTuple):
  """Results of the transition's products, before norms and gates."""

  deter: Array
  stoch: Array
  hidden: tuple[Array, ...]
  gates: Array


def product(x: Array, kernel: Array) -> Array:
  """[..., i] [i, o] -> [..., o], or [g, B, i] [g, i, o] -> [g, B, o]."""
  return x @ kernel if kernel.ndim == 2 else layers.block_product(x, kernel)


def activate(x: Array, scale: Array) -> Array:
  """RMSNorm and SiLU. With blocks, the norm is over those too."""
  return layers.norm_silu(x, scale, BLOCK_AXES if scale.ndim == 3 else -1)


def gate(gates: Array, deter: Array) -> Array:
  """[..., g, B, 3 D / g] and [..., g, B, D / g] -> the next `deter`."""
  reset, candidate, update = jnp.split(gates, 3, -1)
  candidate = jnp.tanh(jax.nn.sigmoid(reset) * candidate)
  update = jax.nn.sigmoid(update - 1)
  return update * candidate + (1 - update) * deter


def step(
  w: Weights, deter: Array, by_block: Array, stoch: Array, action: Array
) -> tuple[Array, Products]:
  """The block GRU (Appendix B).

  Args:
    w: Weights.
    deter: [B, D].
    by_block: The same, [g, B, D / g].
    stoch: [B, S C].
    action: [B, D], what the action adds.

  Returns:
    The next `by_block`, and the results of the products.
  """
  blocks = len(w.own)
  split = lambda x: placement.with_logical_constraint(x, 'rows', None)
  ins = split(w.deter.linear(deter)), split(w.stoch.linear(stoch))
  x = input_layers(w, *ins) @ w.shared + action
  x = layers.block_product(by_block, w.own) + layers.to_blocks(x, blocks)
  hidden = [x]
  x = activate(x, w.hidden_scale)
  for layer in w.hidden:
    hidden.append(layer.linear(x))
    x = activate(hidden[-1], layer.scale)
  gates = layers.block_product(x, w.gates[0]) + w.gates[1]
  return gate(gates, by_block), Products(*ins, tuple(hidden), gates)


def input_layers(w: Weights, deter: Array, stoch: Array) -> Array:
  """[..., 2 H], the two input layers, from their products."""
  parts = activate(deter, w.deter.scale), activate(stoch, w.stoch.scale)
  return jnp.concatenate(parts, -1)


def back(x: Array, scale: Array, cotangent: Array) -> tuple[Array, Array]:
  """Cotangents of `activate`: of its input and of the scale."""
  return jax.vjp(activate, x, scale)[1](cotangent)


def through(cotangent: Array, kernel: Array) -> Array:
  """Cotangent of the input of `product`."""
  return product(cotangent, jnp.swapaxes(kernel, -1, -2))


class Slopes(NamedTuple):
  """What the way back through steps multiplies by, in the compute dtype.

  Attributes:
    ins: [..., B, 2 H], of both input layers.
    hidden: [..., g, B, D / g], of the hidden layers.
    gates: [..., g, B, 3 D / g], of the next `by_block`.
    keep: [..., g, B, D / g], of the next `by_block` by the one before.
  """

  ins: layers.NormSlopes
  hidden: tuple[layers.NormSlopes, ...]
  gates: Array
  keep: Array


def slopes(w: Weights, by_block: Array, saved: Products) -> Slopes:
  """Of one step, or of all of them at once.

  Args:
    w: Weights.
    by_block: [..., g, B, D / g], the state before.
    saved: Results of the products.
  """
  ins = [
    layers.norm_slopes(x, layer.scale)
    for x, layer in ((saved.deter, w.deter), (saved.stoch, w.stoch))
  ]
  scales = [w.hidden_scale, *(x.scale for x in w.hidden)]
  # Each gate acts on its own element of the state.
  after, pull = jax.vjp(gate, saved.gates, by_block)
  gates, keep = pull(jnp.ones_like(after))
  return Slopes(
    ins=jax.tree.map(lambda *x: jnp.concatenate(x, -1), *ins),
    hidden=tuple(
      layers.norm_slopes(x, scale, BLOCK_AXES)
      for x, scale in zip(saved.hidden, scales, strict=True)
    ),
    gates=gates,
    keep=keep,
  )


def cotangents(
  w: Weights, slopes: Slopes, d_next: Array
) -> tuple[tuple[Array, Array, Array], tuple]:
  """The way back through `step`; its weights' follow from what it returns.

  Args:
    w: Weights.
    slopes: Of this step.
    d_next: [g, B, D / g], cotangent of the next `by_block`.

  Returns:
    Cotangents of `deter`, `by_block` and `stoch`; and of the results of both
    input activations [B, 2 H], of all hidden ones, and of the gates' product.
  """
  d_gates = slopes.gates * jnp.concatenate([d_next] * 3, -1)
  d_acts = [through(d_gates, w.gates[0])]
  for layer, at in zip(w.hidden[::-1], slopes.hidden[:0:-1], strict=True):
    d_x = at.back(d_acts[0], BLOCK_AXES)
    d_acts.insert(0, through(d_x, layer.kernel))
  d_x = slopes.hidden[0].back(d_acts[0], BLOCK_AXES)
  d_block = slopes.keep * d_next + through(d_x, w.own)
  d_ins = through(layers.from_blocks(d_x), w.shared)
  halves = lambda x: x.reshape(*x.shape[:-1], 2, -1)
  both = layers.NormSlopes(*map(halves, slopes.ins)).back(halves(d_ins))
  d_deter = through(both[:, 0], w.deter.kernel)
  d_stoch = through(both[:, 1], w.stoch.kernel)
  return (d_deter, d_block, d_stoch), (d_ins, tuple(d_acts), d_gates)
