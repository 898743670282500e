"""The loop over observed steps, and its gradient.

Only what is recurrent is inside. Differentiating the loop as it stands would
add to the gradient of every weight at every step. Here the forward loop keeps
the states alone, from which all that the way back multiplies by is computed for
all steps at once; on one CPU device, where larger products gain nothing, it
keeps the results of its products too. The backward loop carries the state's
cotangents alone and stacks those of the activations, from which each weight's
gradient follows as one product over all steps.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamer_tpu.agent import layers, transition
from dreamer_tpu.agent.distributions import Categorical
from dreamer_tpu.agent.ops import backend, placement
from dreamer_tpu.agent.transition import Dense, Weights

Array = jax.Array


def _place_state(
  deter: Array, by_block: Array, stoch: Array
) -> tuple[Array, Array, Array]:
  """`deter` split by blocks in both forms and `stoch` by variables."""
  return (
    placement.with_logical_constraint(deter, 'rows', 'block_units'),
    placement.with_logical_constraint(by_block, 'blocks', 'rows', None),
    placement.with_logical_constraint(stoch, 'rows', 'units'),
  )


def _place_steps(tree: Any) -> Any:
  """What steps take or leave: by blocks [T, g, B, ...], or whole [T, B, H]."""

  def place(x):
    blocks = ['blocks'] if x.ndim == 4 else []
    return placement.with_logical_constraint(x, None, *blocks, 'rows', None)

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


def _posterior(w: Weights, deter: Array, token: Array) -> tuple[Array, tuple]:
  """Logits [B, S C] from `deter` [B, D], and the products on the way."""
  saved = [
    placement.with_logical_constraint(deter @ w.post + token, 'rows', None)
  ]
  x = transition.activate(saved[0], w.post_scale)
  for layer in w.post_rest:
    saved.append(layer.linear(x))
    x = transition.activate(saved[-1], layer.scale)
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
  return _scan(classes, unimix, w, deter, stoch, inputs)[0]


def _scan(classes, unimix, w, deter, stoch, inputs, *, save=False):
  """Outputs, and if they are to be saved, the results of all products."""

  def step(state, xs):
    inputs, keep = xs
    deter, by_block, stoch = state
    by_block, products = transition.step(
      w, deter, by_block, stoch, inputs.action
    )
    deter = layers.from_blocks(by_block)
    logits, post_products = _posterior(w, deter, inputs.token)
    chosen = _dist(logits, classes, unimix).sample(inputs.noise)
    stoch = _onehot(chosen, classes, deter.dtype)
    state = _place_state(*_masked(keep, deter, by_block, stoch))
    saved = (products, post_products) if save else None
    return state, (Outputs(deter, logits, chosen), saved)

  inputs = inputs._replace(
    action=placement.with_logical_constraint(
      inputs.action, None, 'rows', 'block_units'
    ),
    token=_place_steps(inputs.token),
  )
  by_block = layers.to_blocks(deter, len(w.own))
  start = _place_state(*_masked(inputs.keep[0], deter, by_block, stoch))
  xs = (inputs, _of_next(inputs.keep))
  return jax.lax.scan(step, start, xs)[1]


def _products(w, deters, by_block, stochs, nexts, inputs):
  """What `_scan` saves, of all steps at once from their states."""
  _, products = jax.vmap(transition.step, (None, 0, 0, 0, 0))(
    w, deters, by_block, stochs, inputs.action
  )
  _, post_products = jax.vmap(_posterior, (None, 0, 0))(w, nexts, inputs.token)
  return _place_steps((products, post_products))


def _of_next(keep: Array) -> Array:
  """[T, B], for each step what its state is multiplied by afterwards."""
  return jnp.concatenate([keep[1:], jnp.ones_like(keep[:1])])


def _masked(
  keep: Array, deter: Array, by_block: Array, stoch: Array
) -> tuple[Array, Array, Array]:
  """The state, or its cotangents, times `keep` [B]."""
  keep = keep[:, None]
  return deter * keep, by_block * keep, stoch * keep


def _forward_rule(classes, unimix, w, deter, stoch, inputs):
  outputs, saved = _scan(
    classes,
    unimix,
    w,
    deter,
    stoch,
    inputs,
    save=backend.form() is backend.Form.CPU,
  )
  return outputs, (w, deter, stoch, inputs, outputs, saved)


def _backward_rule(classes, unimix, residuals, cotangents):
  w, deter, stoch, inputs, outputs, saved = residuals
  keep = inputs.keep[..., None]
  onehots = _onehot(outputs.classes, classes, deter.dtype)
  deters = jnp.concatenate([deter[None], outputs.deter[:-1]]) * keep
  stochs = jnp.concatenate([stoch[None], onehots[:-1]]) * keep
  by_block = jax.vmap(lambda x: layers.to_blocks(x, len(w.own)))(deters)
  # Of all steps at once: the loop only multiplies cotangents by what is known.
  if saved is None:
    saved = _products(w, deters, by_block, stochs, outputs.deter, inputs)
  slopes = _place_steps(
    (transition.slopes(w, by_block, saved[0]), _posterior_slopes(w, saved[1]))
  )
  probs = _dist(outputs.logits, classes, 0.0).probs

  def step(state, xs):
    keep, probs, (slopes, post), d_out, d_logits = xs
    d_deter, d_block, d_stoch = _masked(keep, *state)
    d_logits = d_logits + _straight(probs, unimix, d_stoch)
    d_next, d_post = _posterior_cotangents(w, post, d_logits)
    d_next = layers.to_blocks(d_next + d_deter + d_out, len(w.own))
    d_state, d_saved = transition.cotangents(w, slopes, d_block + d_next)
    return _place_state(*d_state), (d_logits, d_post, d_saved)

  zeros = jax.tree.map(jnp.zeros_like, (deter, by_block[0], stoch))
  xs = (_of_next(inputs.keep), probs, slopes, *cotangents[:2])
  d_state, stacked = jax.lax.scan(step, _place_state(*zeros), xs, reverse=True)
  d_deter, d_block, d_stoch = _masked(inputs.keep[0], *d_state)
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
  d_deter = d_deter + layers.from_blocks(d_block)
  d_inputs = inputs._replace(
    action=d_action, token=d_token, keep=None, noise=None
  )
  return d_w, d_deter, d_stoch, d_inputs


observe.defvjp(_forward_rule, _backward_rule)


def _straight(probs: Array, unimix: float, d_stoch: Array) -> Array:
  """Cotangent of the logits [B, S C] through the probabilities.

  Args:
    probs: float32 [B, S, C] softmax of the logits.
    unimix: Share of the uniform in the posterior.
    d_stoch: [B, S C].
  """
  d_probs = d_stoch.astype(jnp.float32).reshape(probs.shape)
  mean = jnp.sum(probs * d_probs, -1, keepdims=True)
  d_logits = (1 - unimix) * probs * (d_probs - mean)
  return _flat(d_logits).astype(d_stoch.dtype)


def _posterior_slopes(w, products):
  scales = [w.post_scale, *(x.scale for x in w.post_rest)]
  return tuple(map(layers.norm_slopes, products, scales))


def _posterior_cotangents(w, slopes, d_logits):
  """Of `deter`, and of the results of all activations."""
  d_acts = [transition.through(d_logits, w.logits[0])]
  for layer, at in zip(w.post_rest[::-1], slopes[:0:-1], strict=True):
    d_acts.insert(0, transition.through(at.back(d_acts[0]), layer.kernel))
  d_x = slopes[0].back(d_acts[0])
  return transition.through(d_x, w.post), tuple(d_acts)


def _weight_cotangents(
  w, deters, by_block, stochs, nexts, saved, d_logits, d_post, d_rest
):
  """All at once, from what the backward loop stacked, [T, ...] each."""
  saved, saved_post = saved
  d_ins, d_hidden, d_gates = d_rest
  d_deter_in, d_stoch_in = jnp.split(d_ins, 2, -1)
  d_x, hidden_scale = transition.back(
    saved.hidden[0], w.hidden_scale, d_hidden[0]
  )
  d_own, _ = _linear(by_block, d_x)
  d_action = jax.vmap(layers.from_blocks)(d_x)
  d_shared, _ = _linear(
    transition.input_layers(w, saved.deter, saved.stoch), d_action
  )
  x = transition.activate(saved.hidden[0], w.hidden_scale)
  hidden = []
  for layer, z, d_act in zip(
    w.hidden, saved.hidden[1:], d_hidden[1:], strict=True
  ):
    hidden.append(_dense(layer, x, z, d_act)[1])
    x = transition.activate(z, layer.scale)
  gates = _linear(x, d_gates)
  d_token, post_scale = transition.back(saved_post[0], w.post_scale, d_post[0])
  d_kernel, _ = _linear(nexts, d_token)
  x = transition.activate(saved_post[0], w.post_scale)
  post = []
  for layer, z, d_act in zip(
    w.post_rest, saved_post[1:], d_post[1:], strict=True
  ):
    post.append(_dense(layer, x, z, d_act)[1])
    x = transition.activate(z, layer.scale)
  d_w = Weights(
    deter=_dense(w.deter, deters, saved.deter, d_deter_in)[1],
    stoch=_dense(w.stoch, stochs, saved.stoch, d_stoch_in)[1],
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
  d_z, scale = transition.back(z, layer.scale, d_act)
  kernel, bias = _linear(x, d_z)
  return d_z, Dense(kernel=kernel, bias=bias, scale=scale)


def _linear(x: Array, d_z: Array) -> tuple[Array, Array]:
  """Cotangents of kernel and bias from T steps of inputs and results."""
  if x.ndim == 3:
    return layers.kernel_gradient(x, d_z), d_z.sum((0, 1))
  bias = d_z.sum((0, 2))[:, None]
  if backend.form() is not backend.Form.CPU:
    return jnp.einsum('tgbi,tgbo->gio', x, d_z), bias
  # A product of all blocks at once would transpose `x`, slower than it is.
  by_block = jnp.swapaxes(x, 0, 1), jnp.swapaxes(d_z, 0, 1)
  return jax.lax.map(lambda xs: layers.kernel_gradient(*xs), by_block), bias


def _dist(logits: Array, classes: int, unimix: float) -> Categorical:
  """Of logits [..., S C]."""
  logits = logits.reshape(*logits.shape[:-1], -1, classes)
  return Categorical.create(logits, unimix)


def _onehot(index: Array, classes: int, dtype: Any) -> Array:
  """[..., S] -> [..., S C]."""
  return _flat(jax.nn.one_hot(index, classes, dtype=dtype))


def _flat(x: Array) -> Array:
  return x.reshape(*x.shape[:-2], -1)
