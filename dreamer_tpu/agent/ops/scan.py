"""A scan that forms the gradients of weights once, after the backward loop.

Differentiating `jax.lax.scan` adds to the gradient of every weight at every
step, and sums it over devices. Here the backward loop stacks the cotangents of
the results of all layers over time, from which each gradient follows at once.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer_tpu.agent.ops import backend

Tree = Any
Array = jax.Array


@dataclasses.dataclass
class Tape:
  """The layers of one step, in the order in which they are computed.

  Attributes:
    taps: One per layer, added to its result so that the cotangent of the tap
      is that of the result. None while the shapes of the results are unknown.
    weights: Weights of each layer, from outside of the loop.
    gradients: Functions that give the gradients of these weights.
    inputs: Inputs.
    results: Results.
  """

  taps: list[Array] | None = None
  weights: list[tuple[Array, ...]] = dataclasses.field(default_factory=list)
  gradients: list[Callable] = dataclasses.field(default_factory=list)
  inputs: list[Array] = dataclasses.field(default_factory=list)
  results: list[Array] = dataclasses.field(default_factory=list)

  def apply(
    self, layer: Callable, gradients: Callable, x: Array, *weights: Array
  ) -> Array:
    """Computes `layer(x, *weights)`, leaving the weights' gradients for later.

    Args:
      layer: The function of one step.
      gradients: Maps inputs and cotangents of results, both with a leading time
        axis, and the weights to the cotangents of the weights.
      x: Input.
      *weights: Arrays from outside of the loop.
    """
    y = layer(x, *jax.lax.stop_gradient(weights))
    if self.taps is not None:
      y += self.taps[len(self.results)]
    self.weights.append(weights)
    self.gradients.append(gradients)
    self.inputs.append(x)
    self.results.append(y)
    return y


_tape: contextvars.ContextVar[Tape | None] = contextvars.ContextVar(
  'tape', default=None
)


def tape() -> Tape | None:
  """Returns the tape of the step being traced, None outside of `scan`."""
  return _tape.get()


@contextlib.contextmanager
def _recording(taps: list[Array] | None = None) -> Iterator[Tape]:
  token = _tape.set(record := Tape(taps))
  try:
    yield record
  finally:
    _tape.reset(token)


def scan(
  step: Callable[[Tree, Tree], tuple[Tree, Tree]], carry: Tree, xs: Tree
) -> tuple[Tree, Tree]:
  """Runs a recurrent step over time.

  Equals `jax.lax.scan` of a step that also outputs its carry, gradients
  included. The forward loop saves only the carries. Before the backward loop,
  all steps are linearized at once, so that the loop only multiplies cotangents.

  Args:
    step: Maps carry and input to carry and output. Its layers are ops of this
      folder, with weights from outside of the loop.
    carry: Initial carry, floating arrays.
    xs: Inputs, floating arrays, time first.

  Returns:
    The carries after all steps and the outputs, time first.

  Raises:
    ValueError: The step uses weights in another way.
  """
  if backend.form() is backend.Form.REFERENCE:
    return jax.lax.scan(lambda *args: _with_carry(*step(*args)), carry, xs)[1]

  def record(carry, x):
    with _recording() as tape:
      step(carry, x)
    weights[:], gradients[:] = tape.weights, tape.gradients
    return tape.results

  def tapped(carry, x, taps):
    with _recording(taps) as tape:
      carry, y = step(carry, x)
    return (carry, y), tape.inputs

  weights: list[tuple[Array, ...]] = []
  gradients: list[Callable] = []
  first = jax.tree.map(lambda x: x[0], xs)
  shapes = jax.eval_shape(record, carry, first)
  closed, constants = jax.closure_convert(tapped, carry, first, shapes)
  _check_weights(weights, constants)
  zeros = lambda: [jnp.zeros(x.shape, x.dtype) for x in shapes]

  def forward(weights, constants, carry, xs):
    def body(carry, x):
      (carry, y), _ = closed(carry, x, zeros(), *constants)
      return _with_carry(carry, y)

    _, outputs = jax.lax.scan(body, carry, xs)
    return outputs, (weights, constants, carry, xs, outputs[0])

  def backward(residuals, cotangents):
    weights, constants, carry, xs, carries = residuals
    fn = lambda *args: closed(*args, *constants)
    before = jax.tree.map(
      lambda x, xs: jnp.concatenate([x[None], xs[:-1]]), carry, carries
    )
    pullback, inputs = _linearize_steps(fn, before, xs, zeros)
    d_carry, (d_xs, d_results) = _backward_loop(pullback, carry, cotangents)
    d_weights = [
      gradient(x, d_result, *w)
      for gradient, x, d_result, w in zip(
        gradients, inputs, d_results, weights, strict=True
      )
    ]
    return d_weights, None, d_carry, d_xs

  run = jax.custom_vjp(lambda *args: forward(*args)[0])
  run.defvjp(forward, backward)
  return run(weights, constants, carry, xs)


def _with_carry(carry, y):
  return carry, (carry, y)


def _check_weights(weights, constants) -> None:
  """Refuses closed-over arrays whose gradients would be lost."""
  ids = {id(x) for x in jax.tree.leaves(weights)}
  constant_ids = {id(x) for x in constants}
  for weight in jax.tree.leaves(weights):
    if isinstance(weight, jax.core.Tracer) and id(weight) not in constant_ids:
      raise ValueError(
        f'A weight {weight.shape} of a layer is computed inside of the scan, '
        'where its gradient would be lost; compute it before the scan.'
      )
  for constant in constants:
    if id(constant) not in ids:
      raise ValueError(
        f'The scan uses an array {constant.shape} from outside that is not a '
        'weight of a layer, so its gradient would be lost; pass it in `xs`.'
      )


@dataclasses.dataclass
class _Pullbacks:
  """Pullbacks of all steps: stacked and shared residuals of one function."""

  stacked: list[Array]
  merge: Callable[[list[Array]], Callable]


def _linearize_steps(fn, carries, xs, zeros) -> tuple[_Pullbacks, Any]:
  """Linearizes a step at all carries and inputs at once.

  Residuals that no carry or input has a part in, such as kernels, are shared.
  """
  trees = []

  def linearize(carry, x):
    _, pullback, inputs = jax.vjp(fn, carry, x, zeros(), has_aux=True)
    leaves, tree = jax.tree.flatten(pullback)
    trees.append(tree)
    return leaves, inputs

  first = jax.tree.map(lambda x: x[0], (carries, xs))
  jaxpr, shapes = jax.make_jaxpr(linearize, return_shape=True)(*first)
  varying = set(jaxpr.jaxpr.invars)
  for eqn in jaxpr.eqns:
    if any(not hasattr(x, 'val') and x in varying for x in eqn.invars):
      varying.update(eqn.outvars)
  count = len(shapes[0])
  varies = [
    not hasattr(x, 'val') and x in varying for x in jaxpr.jaxpr.outvars[:count]
  ]
  axes = [0 if x else None for x in varies]
  leaves, inputs = jax.vmap(linearize, out_axes=(axes, 0))(carries, xs)

  def merge(stacked):
    rest = iter(stacked)
    merged = [
      next(rest) if x else leaf for x, leaf in zip(varies, leaves, strict=True)
    ]
    return jax.tree.unflatten(trees[-1], merged)

  stacked = [leaf for x, leaf in zip(varies, leaves, strict=True) if x]
  return _Pullbacks(stacked, merge), inputs


def _backward_loop(pullbacks: _Pullbacks, carry, cotangents):
  """Scans the pullbacks of all steps in reverse.

  Args:
    pullbacks: From `_linearize_steps`.
    carry: Initial carry of the forward loop.
    cotangents: Cotangents of the carries and outputs of all steps.
  """
  d_carries, d_ys = cotangents
  leaves, tree = jax.tree.flatten(d_ys)
  floating = [x for x in leaves if x.dtype != jax.dtypes.float0]

  def body(d_carry, inputs):
    residuals, d_step, floating = inputs
    rest = iter(floating)
    d_y = [
      np.zeros(x.shape[1:], x.dtype)
      if x.dtype == jax.dtypes.float0
      else next(rest)
      for x in leaves
    ]
    d_carry = jax.tree.map(jnp.add, d_carry, d_step)
    d_carry, *rest = pullbacks.merge(residuals)(
      (d_carry, jax.tree.unflatten(tree, d_y))
    )
    return d_carry, tuple(rest)

  start = jax.tree.map(jnp.zeros_like, carry)
  xs = pullbacks.stacked, d_carries, floating
  return jax.lax.scan(body, start, xs, reverse=True)
