"""The loop over observed steps, and its gradient.

Only what is recurrent is inside. Differentiating the loop as it stands would
add to the gradient of every weight at every step. Here the backward loop
carries the state's cotangents alone and stacks those of the activations, from
from which each weight's gradient follows as one product over all steps.

The blocks come first where layers are block-diagonal: [g, B, units / g]. The
state is carried in both forms, [B, D] and by block: were the gates, which
compute exponentials, only needed transposed, XLA would compute them inside of
the transposition, and on CPU take several times as long.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from dreamer_tpu.agent import layers, placement
from dreamer_tpu.agent.distributions import Categorical

Array = jax.Array


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
  by_block = lambda x: placement.constrain(x, 'blocks', None, None)
  of_deter = lambda x: placement.constrain(x, 'block_units', None)
  same = lambda x: placement.constrain(x, *[None] * x.ndim)
  whole = lambda tree: jax.tree.map(same, tree)
  kernel, bias = w.logits
  return Weights(
    deter=whole(w.deter).replace(kernel=of_deter(w.deter.kernel)),
    stoch=whole(w.stoch).replace(
      kernel=placement.constrain(w.stoch.kernel, 'units', None)
    ),
    own=by_block(w.own),
    shared=placement.constrain(w.shared, None, 'block_units'),
    hidden_scale=by_block(w.hidden_scale),
    hidden=jax.tree.map(by_block, w.hidden),
    gates=jax.tree.map(by_block, w.gates),
    post=of_deter(w.post),
    post_scale=same(w.post_scale),
    post_rest=whole(w.post_rest),
    logits=(
      placement.constrain(kernel, None, 'units'),
      placement.constrain(bias, 'units'),
    ),
  )


def _place_state(
  deter: Array, by_block: Array, stoch: Array
) -> tuple[Array, Array, Array]:
  """`deter` split by blocks in both forms and `stoch` by variables."""
  return (
    placement.constrain(deter, 'rows', 'block_units'),
    placement.constrain(by_block, 'blocks', 'rows', None),
    placement.constrain(stoch, 'rows', 'units'),
  )


def _place_steps(tree: Any) -> Any:
  """What steps take or leave: by blocks [T, g, B, ...], or whole [T, B, H]."""

  def place(x):
    blocks = ['blocks'] if x.ndim == 4 else []
    return placement.constrain(x, None, *blocks, 'rows', None)

  return jax.tree.map(place, tree)


class Inputs(NamedTuple):
  """What comes from outside, time first.

  Attributes:
    action: [T, B, D], what actions add to the first hidden layer.
    token: [T, B, H], what tokens add to the first posterior layer.
    keep: [T, B] 0 where an episode starts, else 1.
    noise: float32 [T, B, S] in [0, 1), or None to take modes.
  """

  action: Array
  token: Array
  keep: Array
  noise: Array | None


class Outputs(NamedTuple):
  """Attributes: deter [T, B, D], logits [T, B, S C], classes [T, B, S]."""

  deter: Array
  logits: Array
  classes: Array


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
  axes = (-3, -1) if scale.ndim == 3 else -1
  return layers.norm_silu(x, scale, axes)


def gate(gates: Array, deter: Array) -> Array:
  """[..., g, B, 3 D / g] and [..., g, B, D / g] -> the next `deter`."""
  reset, candidate, update = jnp.split(gates, 3, -1)
  candidate = jnp.tanh(jax.nn.sigmoid(reset) * candidate)
  update = jax.nn.sigmoid(update - 1)
  return update * candidate + (1 - update) * deter


def transition(
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
  split = lambda x: placement.constrain(x, 'rows', None)
  ins = split(w.deter.linear(deter)), split(w.stoch.linear(stoch))
  x = _inputs(w, *ins) @ w.shared + action
  x = layers.block_product(by_block, w.own) + layers.to_blocks(x, blocks)
  hidden = [x]
  x = activate(x, w.hidden_scale)
  for layer in w.hidden:
    hidden.append(layer.linear(x))
    x = activate(hidden[-1], layer.scale)
  gates = layers.block_product(x, w.gates[0]) + w.gates[1]
  return gate(gates, by_block), Products(*ins, tuple(hidden), gates)


def _inputs(w: Weights, deter: Array, stoch: Array) -> Array:
  """[..., 2 H], the two input layers, from their products."""
  parts = activate(deter, w.deter.scale), activate(stoch, w.stoch.scale)
  return jnp.concatenate(parts, -1)


def _posterior(w: Weights, deter: Array, token: Array) -> tuple[Array, tuple]:
  """Logits [B, S C] from `deter` [B, D], and the products on the way."""
  saved = [placement.constrain(deter @ w.post + token, 'rows', None)]
  x = activate(saved[0], w.post_scale)
  for layer in w.post_rest:
    saved.append(layer.linear(x))
    x = activate(saved[-1], layer.scale)
  return x @ w.logits[0] + w.logits[1], tuple(saved)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def observe(
  classes: int,
  unimix: float,
  w: Weights,
  deter: Array,
  stoch: Array,
  inputs: Inputs,
) -> Outputs:
  """Posterior states of T steps (Eq. 3); `classes` are the sampled ones.

  Args:
    classes: Number C of classes.
    unimix: Share of the uniform in the posterior.
    w: Weights.
    deter: [B, D] before the first step.
    stoch: [B, S C] before the first step.
    inputs: Of all steps.
  """
  return _forward(classes, unimix, w, deter, stoch, inputs, save=False)[0]


def _forward(classes, unimix, w, deter, stoch, inputs, *, save):
  def step(state, inputs):
    keep = inputs.keep[:, None]
    deter, by_block, stoch = (x * keep for x in state)
    by_block, products = transition(w, deter, by_block, stoch, inputs.action)
    deter = layers.from_blocks(by_block)
    logits, post = _posterior(w, deter, inputs.token)
    chosen = _dist(logits, classes, unimix).choose(inputs.noise)
    stoch = _onehot(chosen, classes, deter.dtype)
    deter, by_block, stoch = _place_state(deter, by_block, stoch)
    saved = (products, post) if save else None
    return (deter, by_block, stoch), (Outputs(deter, logits, chosen), saved)

  inputs = inputs._replace(
    action=placement.constrain(inputs.action, None, 'rows', 'block_units'),
    token=_place_steps(inputs.token),
  )
  by_block = layers.to_blocks(deter, len(w.own))
  start = _place_state(deter, by_block, stoch)
  _, (outputs, saved) = jax.lax.scan(step, start, inputs)
  return outputs, _place_steps(saved)


def _forward_rule(classes, unimix, w, deter, stoch, inputs):
  outputs, saved = _forward(classes, unimix, w, deter, stoch, inputs, save=True)
  return outputs, (w, deter, stoch, inputs, outputs, saved)


def _backward_rule(classes, unimix, residuals, cotangents):
  w, deter, stoch, inputs, outputs, saved = residuals
  keep = inputs.keep[..., None]
  onehots = _onehot(outputs.classes, classes, deter.dtype)
  deters = jnp.concatenate([deter[None], outputs.deter[:-1]]) * keep
  stochs = jnp.concatenate([stoch[None], onehots[:-1]]) * keep
  by_block = jax.vmap(lambda x: layers.to_blocks(x, len(w.own)))(deters)

  def step(state, xs):
    d_deter, d_block, d_stoch = state
    by_block, keep, logits, (saved, post), d_out, d_logits = xs
    _, straight = jax.vjp(
      lambda x: _flat(_dist(x, classes, unimix).probs), logits
    )
    d_logits = d_logits + straight(d_stoch.astype(jnp.float32))[0]
    d_next, d_post = _posterior_cotangents(w, post, d_logits)
    d_next = layers.to_blocks(d_next + d_deter + d_out, len(w.own))
    d_state, d_saved = _transition_cotangents(
      w, by_block, saved, d_block + d_next
    )
    state = _place_state(*(x * keep[:, None] for x in d_state))
    return state, (d_logits, d_post, d_saved)

  zeros = jax.tree.map(jnp.zeros_like, (deter, by_block[0], stoch))
  xs = (by_block, inputs.keep, outputs.logits, saved, *cotangents[:2])
  d_state, stacked = jax.lax.scan(step, _place_state(*zeros), xs, reverse=True)
  d_logits, *stacked = stacked
  d_w, d_action, d_token = _weight_cotangents(
    w,
    deters,
    by_block,
    stochs,
    outputs.deter,
    saved,
    d_logits,
    *_place_steps(stacked),
  )
  d_deter = d_state[0] + layers.from_blocks(d_state[1])
  d_inputs = inputs._replace(
    action=d_action, token=d_token, keep=None, noise=None
  )
  return d_w, d_deter, d_state[2], d_inputs


observe.defvjp(_forward_rule, _backward_rule)


def _back(x: Array, scale: Array, cotangent: Array) -> tuple[Array, Array]:
  """Cotangents of `activate`: of its input and of the scale."""
  return jax.vjp(activate, x, scale)[1](cotangent)


def _through(cotangent: Array, kernel: Array) -> Array:
  """Cotangent of the input of `product`."""
  return product(cotangent, jnp.swapaxes(kernel, -1, -2))


def _posterior_cotangents(w, saved, d_logits):
  """Of `deter`, and of the results of all activations."""
  d_acts = [_through(d_logits, w.logits[0])]
  scales = [w.post_scale, *(x.scale for x in w.post_rest)]
  for i in reversed(range(1, len(saved))):
    d_x, _ = _back(saved[i], scales[i], d_acts[0])
    d_acts.insert(0, _through(d_x, w.post_rest[i - 1].kernel))
  d_x, _ = _back(saved[0], scales[0], d_acts[0])
  return _through(d_x, w.post), tuple(d_acts)


def _transition_cotangents(w, by_block, saved, d_next):
  """Of the state in its three parts; of activations' results and gates."""
  _, gate_vjp = jax.vjp(gate, saved.gates, by_block)
  d_gates, d_block = gate_vjp(d_next)
  d_acts = [_through(d_gates, w.gates[0])]
  scales = [w.hidden_scale, *(x.scale for x in w.hidden)]
  for i in reversed(range(1, len(saved.hidden))):
    d_x, _ = _back(saved.hidden[i], scales[i], d_acts[0])
    d_acts.insert(0, _through(d_x, w.hidden[i - 1].kernel))
  d_x, _ = _back(saved.hidden[0], scales[0], d_acts[0])
  d_block = d_block + _through(d_x, w.own)
  d_shared = _through(layers.from_blocks(d_x), w.shared)
  d_ins = jnp.split(d_shared, [w.deter.kernel.shape[-1]], -1)
  d_x, _ = _back(saved.deter, w.deter.scale, d_ins[0])
  d_deter = _through(d_x, w.deter.kernel)
  d_x, _ = _back(saved.stoch, w.stoch.scale, d_ins[1])
  d_stoch = _through(d_x, w.stoch.kernel)
  d_saved = (tuple(d_ins), tuple(d_acts), d_gates)
  return (d_deter, d_block, d_stoch), d_saved


def _weight_cotangents(
  w, deters, by_block, stochs, nexts, saved, d_logits, d_post, d_rest
):
  """All at once, from what the backward loop stacked, [T, ...] each."""
  saved, saved_post = saved
  d_ins, d_hidden, d_gates = d_rest
  d_x, hidden_scale = _back(saved.hidden[0], w.hidden_scale, d_hidden[0])
  d_own, _ = _linear(by_block, d_x)
  d_action = jax.vmap(layers.from_blocks)(d_x)
  d_shared, _ = _linear(_inputs(w, saved.deter, saved.stoch), d_action)
  x = activate(saved.hidden[0], w.hidden_scale)
  hidden = []
  for layer, z, d_act in zip(
    w.hidden, saved.hidden[1:], d_hidden[1:], strict=True
  ):
    hidden.append(_dense(layer, x, z, d_act)[1])
    x = activate(z, layer.scale)
  gates = _linear(x, d_gates)
  d_token, post_scale = _back(saved_post[0], w.post_scale, d_post[0])
  d_kernel, _ = _linear(nexts, d_token)
  x = activate(saved_post[0], w.post_scale)
  post = []
  for layer, z, d_act in zip(
    w.post_rest, saved_post[1:], d_post[1:], strict=True
  ):
    post.append(_dense(layer, x, z, d_act)[1])
    x = activate(z, layer.scale)
  d_w = Weights(
    deter=_dense(w.deter, deters, saved.deter, d_ins[0])[1],
    stoch=_dense(w.stoch, stochs, saved.stoch, d_ins[1])[1],
    own=d_own,
    shared=d_shared,
    hidden_scale=hidden_scale,
    hidden=tuple(hidden),
    gates=gates,
    post=d_kernel,
    post_scale=post_scale,
    post_rest=tuple(post),
    logits=_linear(x, d_logits),
  )
  return d_w, d_action, d_token


def _dense(layer: Dense, x: Array, z: Array, d_act: Array):
  """Cotangent of `z` and of a layer with input `x` and product `z`."""
  d_z, scale = _back(z, layer.scale, d_act)
  kernel, bias = _linear(x, d_z)
  return d_z, Dense(kernel=kernel, bias=bias, scale=scale)


def _linear(x: Array, d_z: Array) -> tuple[Array, Array]:
  """Cotangents of kernel and bias from T steps of inputs and results."""
  if x.ndim == 3:
    return jnp.einsum('tbi,tbo->io', x, d_z), d_z.sum((0, 1))
  kernel = jnp.einsum('tgbi,tgbo->gio', x, d_z)
  return kernel, d_z.sum((0, 2))[:, None]


def _dist(logits: Array, classes: int, unimix: float) -> Categorical:
  """Of logits [..., S C]."""
  logits = logits.reshape(*logits.shape[:-1], -1, classes)
  return Categorical.create(logits, unimix)


def _onehot(index: Array, classes: int, dtype: Any) -> Array:
  """[..., S] -> [..., S C]."""
  return _flat(jax.nn.one_hot(index, classes, dtype=dtype))


def _flat(x: Array) -> Array:
  return x.reshape(*x.shape[:-2], -1)
