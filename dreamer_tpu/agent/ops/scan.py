"""A scan that forms the gradients of weights once, after the backward loop.

Differentiating `jax.lax.scan` adds to the gradient of every weight at every
step, and sums it over devices. Here the backward loop stacks the cotangents of
the results of all layers over time, from which each gradient follows at once.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer_tpu.agent.ops import backend

Tree = Any
Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Layer:
  """A chain of functions with weights, for the step of a `scan`.

  Attributes:
    parts: Functions with their weights, arrays from outside of the loop. The
      first function takes an array or a tuple of arrays, the others the result
      of the one before. All of them accept arrays with a leading axis of time.
  """

  parts: tuple[tuple[Callable[..., Array], tuple[Array, ...]], ...]

  @classmethod
  def create(cls, fn: Callable[..., Array], *weights: Array) -> 'Layer':
    """Makes a layer of one function, called as `fn(x, *weights)`."""
    return cls(((fn, weights),))

  def then(self, other: 'Layer') -> 'Layer':
    """Returns the layer that applies this one and then the other."""
    return Layer(self.parts + other.parts)

  def __call__(self, x: Any) -> Array:
    """Applies all functions."""
    if tape := _tape.get():
      return tape.apply(self, x)
    for fn, weights in self.parts:
      x = fn(x, *weights)
    return x

  def gradients(
    self,
    weights: Sequence[tuple[Array, ...]],
    inputs: Sequence[Any],
    d_y: Array,
  ) -> tuple[Any, list[tuple[Array, ...]]]:
    """Returns the gradients of the layer's input and of all weights.

    Args:
      weights: Weights of all functions.
      inputs: Inputs of all functions, time first.
      d_y: Cotangents of the results, time first.
    """
    d_weights = []
    for (fn, _), w, x in zip(
      self.parts[::-1], weights[::-1], inputs[::-1], strict=True
    ):
      d_y, *d_w = jax.vjp(fn, x, *w)[1](d_y)
      d_weights.append(tuple(d_w))
    return d_y, d_weights[::-1]


class _Use(NamedTuple):
  """The use of a layer in a step.

  Attributes:
    layer: The layer.
    sources: For each array of its input, the index of the input of the step
      that it is, or None.
    inputs: Inputs of all functions of the layer.
    result: Its result.
  """

  layer: Layer
  sources: list[int | None]
  inputs: list[Any]
  result: Array


@dataclasses.dataclass
class _Tape:
  """Records the layers of one step.

  Attributes:
    xs: Inputs of the step.
    copies: The same inputs, as layers take them.
    taps: One per layer, added to its result so that the cotangent of the tap
      is that of the result. None while the shapes of the results are unknown.
    uses: Layers in the order in which they are computed.
  """

  xs: list[Array]
  copies: list[Array]
  taps: list[Array] | None = None
  uses: list[_Use] = dataclasses.field(default_factory=list)

  def apply(self, layer: Layer, x: Any) -> Array:
    """Applies a layer, leaving the gradients of its weights for later."""
    leaves, tree = jax.tree.flatten(x)
    indices = {id(x): i for i, x in enumerate(self.xs)}
    sources = [indices.get(id(x)) for x in leaves]
    pairs = zip(leaves, sources, strict=True)
    leaves = [x if i is None else self.copies[i] for x, i in pairs]
    x = jax.tree.unflatten(tree, leaves)
    inputs = []
    for fn, weights in layer.parts:
      inputs.append(x)
      x = fn(x, *jax.lax.stop_gradient(weights))
    if self.taps is not None:
      x += self.taps[len(self.uses)]
    self.uses.append(_Use(layer, sources, inputs, x))
    return x


_tape: contextvars.ContextVar[_Tape | None] = contextvars.ContextVar(
  'tape', default=None
)


@contextlib.contextmanager
def _recording(*args: Any) -> Iterator[_Tape]:
  token = _tape.set(record := _Tape(*args))
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
    step: Maps carry and input to carry and output. It uses weights, which come
      from outside of the loop, in layers only.
    carry: Initial carry, floating arrays.
    xs: Inputs, floating arrays, time first.

  Returns:
    The carries after all steps and the outputs, time first.

  Raises:
    ValueError: The step uses weights in another way.
  """
  if backend.form() is backend.Form.REFERENCE:
    return jax.lax.scan(lambda *args: _with_carry(*step(*args)), carry, xs)[1]
  leaves, tree = jax.tree.flatten(xs)
  traced = _Step.trace(
    lambda carry, xs: step(carry, jax.tree.unflatten(tree, xs)),
    carry,
    [x[0] for x in leaves],
  )
  run = jax.custom_vjp(lambda *args: _forward(traced, *args)[0])
  run.defvjp(
    functools.partial(_forward, traced), functools.partial(_backward, traced)
  )
  return run(traced.weights, traced.constants, carry, leaves)


@dataclasses.dataclass(frozen=True)
class _Step:
  """A step as a function without side effects.

  Attributes:
    fn: Maps carry, inputs, the inputs as layers take them, taps and constants
      to carry and output, and the inputs of all layers' functions.
    constants: Arrays from outside, all of them weights.
    uses: The layers; of their arrays only the shapes are of use.
    direct: Indices of the inputs that are used outside of layers.
  """

  fn: Callable[..., tuple[Any, list[Any]]]
  constants: list[Array]
  uses: list[_Use]
  direct: list[int]

  @classmethod
  def trace(cls, step: Callable, carry: Tree, xs: list[Array]) -> '_Step':
    """Traces a step with a carry and inputs of one step."""
    uses: list[_Use] = []

    def record(carry, xs):
      with _recording(xs, xs) as tape:
        step(carry, xs)
      uses[:] = tape.uses
      return [use.result for use in uses]

    def fn(carry, xs, copies, taps):
      with _recording(xs, copies, taps) as tape:
        outputs = step(carry, xs)
      return outputs, [use.inputs for use in tape.uses]

    args = carry, xs, xs, jax.eval_shape(record, carry, xs)
    closed, constants = jax.closure_convert(fn, *args)
    direct = _used_inputs(closed, *args, *constants)
    traced = cls(closed, constants, uses, direct)
    _check_weights(traced.weights, constants)
    return traced

  @property
  def weights(self) -> list[list[tuple[Array, ...]]]:
    """Weights of all functions of all layers."""
    return [[weights for _, weights in use.layer.parts] for use in self.uses]

  def taps(self) -> list[Array]:
    """Returns zeros to add to the results of all layers."""
    return [jnp.zeros(x.result.shape, x.result.dtype) for x in self.uses]

  def __call__(self, constants, carry, direct, xs, taps):
    """Computes the step; layers see `xs`, everything else sees `direct`."""
    inputs = list(xs)
    for i, x in zip(self.direct, direct, strict=True):
      inputs[i] = x
    return self.fn(carry, inputs, xs, taps, *constants)

  def gradients(self, weights, inputs, d_results, d_xs):
    """Returns the gradients of all weights; adds to those of the inputs."""
    result = []
    for use, *args in zip(self.uses, weights, inputs, d_results, strict=True):
      d_x, d_weights = use.layer.gradients(*args)
      result.append(d_weights)
      for i, x in zip(use.sources, jax.tree.leaves(d_x), strict=True):
        if i is not None:
          d_xs[i] += x
    return result


def _forward(step, weights, constants, carry, xs):
  def body(carry, x):
    direct = [x[i] for i in step.direct]
    outputs, _ = step(constants, carry, direct, x, step.taps())
    return _with_carry(*outputs)

  _, outputs = jax.lax.scan(body, carry, xs)
  return outputs, (weights, constants, carry, xs, outputs[0])


def _backward(step, residuals, cotangents):
  weights, constants, carry, xs, carries = residuals
  join = lambda x, xs: jnp.concatenate([x[None], xs[:-1]])
  before = jax.tree.map(join, carry, carries)
  pullbacks, inputs = _linearize_steps(step, constants, before, xs)
  d_carry, (d_direct, d_results) = _backward_loop(pullbacks, carry, cotangents)
  d_xs = [jnp.zeros_like(x) for x in xs]
  for i, d_x in zip(step.direct, d_direct, strict=True):
    d_xs[i] = d_x
  d_weights = step.gradients(weights, inputs, d_results, d_xs)
  return d_weights, None, d_carry, d_xs


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


def _used_inputs(fn, carry, xs, *args) -> list[int]:
  """Returns the indices of the inputs that a step uses outside of layers."""
  jaxpr = jax.make_jaxpr(fn)(carry, xs, *args).jaxpr
  skipped = len(jax.tree.leaves(carry))
  used = {id(x) for eqn in jaxpr.eqns for x in eqn.invars}
  used |= {id(x) for x in jaxpr.outvars}
  inputs = jaxpr.invars[skipped : skipped + len(xs)]
  return [i for i, x in enumerate(inputs) if id(x) in used]


@dataclasses.dataclass
class _Pullbacks:
  """Pullbacks of all steps: stacked and shared residuals of one function."""

  stacked: list[Array]
  merge: Callable[[list[Array]], Callable]


def _linearize_steps(step, constants, carries, xs) -> tuple[_Pullbacks, Any]:
  """Linearizes a step at all carries and inputs at once.

  Residuals that no carry or input has a part in, such as kernels, are shared.

  Returns:
    The pullbacks to carry, direct inputs and taps, and the inputs of layers.
  """
  trees = []

  def linearize(carry, x):
    fn = lambda carry, direct, taps: step(constants, carry, direct, x, taps)
    args = carry, [x[i] for i in step.direct], step.taps()
    _, pullback, inputs = jax.vjp(fn, *args, has_aux=True)
    leaves, tree = jax.tree.flatten(pullback)
    trees.append(tree)
    return leaves, inputs

  first = jax.tree.map(lambda x: x[0], (carries, xs))
  jaxpr, shapes = jax.make_jaxpr(linearize, return_shape=True)(*first)
  varies = _depend_on_inputs(jaxpr.jaxpr)[: len(shapes[0])]
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


def _depend_on_inputs(jaxpr) -> list[bool]:
  """Returns for all outputs of a jaxpr whether an input has a part in them."""
  varying = {id(x) for x in jaxpr.invars}
  for eqn in jaxpr.eqns:
    if any(id(x) in varying for x in eqn.invars):
      varying.update(map(id, eqn.outvars))
  return [id(x) in varying for x in jaxpr.outvars]


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
