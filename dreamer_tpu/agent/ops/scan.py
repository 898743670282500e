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
  """Computes `jax.lax.scan(step, carry, xs)`, with faster gradients.

  Args:
    step: Maps carry and input to carry and output. Its layers are ops of this
      folder, with weights from outside of the loop.
    carry: Initial carry.
    xs: Inputs, time first.

  Returns:
    The last carry, and the outputs, time first.
  """
  if backend.form() is backend.Form.REFERENCE:
    return jax.lax.scan(step, carry, xs)

  def record(carry, x):
    with _recording() as tape:
      step(carry, x)
    weights[:], gradients[:] = tape.weights, tape.gradients
    return tape.results

  def tapped(carry, x, taps):
    with _recording(taps) as tape:
      carry, y = step(carry, x)
    return carry, (y, tape.inputs)

  weights: list[tuple[Array, ...]] = []
  gradients: list[Callable] = []
  first = jax.tree.map(lambda x: x[0], xs)
  shapes = jax.eval_shape(record, carry, first)
  closed, constants = jax.closure_convert(tapped, carry, first, shapes)
  outside = {id(x) for x in constants}
  for weight in jax.tree.leaves(weights):
    if isinstance(weight, jax.core.Tracer) and id(weight) not in outside:
      raise ValueError(
        f'A weight {weight.shape} of a layer is computed inside of the scan, '
        'where its gradient would be lost; compute it before the scan.'
      )
  length = len(jax.tree.leaves(xs)[0])

  def loop(constants, taps, carry, xs):
    body = lambda carry, x: closed(carry, *x, *constants)
    carry, (ys, inputs) = jax.lax.scan(body, carry, (xs, taps))
    return (carry, ys), inputs

  def forward(weights, constants, carry, xs):
    taps = [jnp.zeros((length, *x.shape), x.dtype) for x in shapes]
    out, pullback, inputs = jax.vjp(
      loop, constants, taps, carry, xs, has_aux=True
    )
    return out, (weights, pullback, inputs)

  def backward(residuals, cotangents):
    weights, pullback, inputs = residuals
    d_constants, d_results, d_carry, d_xs = pullback(cotangents)
    d_weights = [
      gradient(x, d_result, *w)
      for gradient, x, d_result, w in zip(
        gradients, inputs, d_results, weights, strict=True
      )
    ]
    return d_weights, d_constants, d_carry, d_xs

  run = jax.custom_vjp(lambda *args: forward(*args)[0])
  run.defvjp(forward, backward)
  return run(weights, constants, carry, xs)
