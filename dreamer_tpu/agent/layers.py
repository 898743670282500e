"""Linear layers, norms and MLPs, with logical axis names.

Parameters are float32; products run in the compute dtype. Every parameter
carries `axes`, one logical name per dimension, from which the sharding rules
derive its sharding.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dreamer_tpu.agent.ops import convolution, matmul, norm, placement, scan

Axes = tuple[str | None, ...]


def kernel_init(
  key: jax.Array,
  shape: tuple[int, ...],
  *,
  in_axis: int | tuple[int, ...] = -2,
  outscale: float = 1.0,
) -> jax.Array:
  """Draws a kernel from a truncated normal of variance outscale^2 / fan_in."""
  init = jax.nn.initializers.variance_scaling(
    outscale**2, 'fan_in', 'truncated_normal', in_axis=in_axis
  )
  return init(key, shape, jnp.float32)


def cast(params: Any, dtype: jnp.dtype) -> Any:
  """Casts all parameters but the scales of norms, once for a whole loop."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x if path[-1].key == 'scale' else x.astype(dtype), params
  )


class Linear(nnx.Module):
  """x @ kernel + bias: [..., inputs] -> [..., outputs]."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    axes: Axes = ('features', 'units'),
    outscale: float = 1.0,
  ):
    kernel = kernel_init(rngs.params(), (inputs, outputs), outscale=outscale)
    self.kernel = nnx.Param(kernel, axes=axes)
    self.bias = nnx.Param(jnp.zeros(outputs), axes=axes[1:])
    self.dtype = dtype

  def weights(self) -> tuple[jax.Array, jax.Array]:
    """Returns kernel and bias in the compute dtype."""
    kernel, bias = self.kernel[...], self.bias[...]
    return kernel.astype(self.dtype), bias.astype(self.dtype)

  def __call__(
    self, x: jax.Array, cached: jax.Array | None = None
  ) -> jax.Array:
    """Applies the layer.

    Args:
      x: [..., inputs].
      cached: The result, if it has been computed before.
    """
    linear = lambda x, kernel, bias: matmul.product(x, kernel) + bias
    return with_cached_output(
      linear, cached, x.astype(self.dtype), *self.weights()
    )

  def apply_split(
    self, *parts: jax.Array, cached: jax.Array | None = None
  ) -> jax.Array:
    """Applies the layer to the concatenation of `parts` without forming it.

    Devices that share a model hold a piece of every part, and multiply it by
    their rows of the kernel; the sum of the results is less to send than whole
    inputs.

    Args:
      *parts: [..., n] each, of the model's state.
      cached: The result, if it has been computed before.
    """
    kernel, bias = self.weights()
    ends = [*itertools.accumulate(x.shape[-1] for x in parts)]
    kernels = [
      placement.split_inputs(k, 'units') for k in jnp.split(kernel, ends[:-1])
    ]
    inputs = [x.astype(self.dtype) for x in parts]
    return with_cached_output(_linear_of_parts, cached, inputs, kernels, bias)

  def prepare(
    self, inputs: str | None = None, outputs: str | None = None
  ) -> scan.Layer:
    """Returns the layer for use in a loop.

    Weights are cast and resharded here, outside of the loop.

    Args:
      inputs: Logical axis over which the loop has the inputs sharded.
      outputs: Logical axis of the outputs.
    """
    kernel, bias = self.weights()
    if inputs:
      kernel = placement.split_inputs(kernel, inputs)
    else:
      kernel = placement.with_logical_constraint(kernel, None, outputs)
    bias = placement.with_logical_constraint(bias, outputs)
    return scan.Layer.create(matmul.linear, kernel, bias)


def _linear_of_parts(parts, kernels, bias):
  x = functools.reduce(jnp.add, map(matmul.product, parts, kernels))
  return placement.with_logical_constraint(x, 'units') + bias


def with_cached_output(
  fn: Callable, cached: jax.Array | None, *args: Any
) -> jax.Array:
  """Returns `fn(*args)`, reusing a cached output; gradients are those of `fn`.

  Args:
    fn: Needs no residuals but `args` for its gradient.
    cached: An earlier result of `fn(*args)`, without a gradient; None to
      compute it.
    *args: Trees of arrays.
  """
  if cached is None:
    return fn(*args)

  @jax.custom_vjp
  def reuse(cached, *args):
    return cached

  reuse.defvjp(
    lambda cached, *args: (cached, args),
    lambda args, cotangent: (None, *jax.vjp(fn, *args)[1](cotangent)),
  )
  return reuse(cached, *args)


class BlockLinear(nnx.Module):
  """Block-diagonal linear layer: block g of inputs maps to block g of outputs.

  The kernel is [blocks, inputs / blocks, outputs / blocks].
  """

  def __init__(
    self,
    inputs: int,
    outputs: int,
    blocks: int,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    shape = (blocks, inputs // blocks, outputs // blocks)
    kernel = kernel_init(rngs.params(), shape, in_axis=(0, 1))
    self.kernel = nnx.Param(kernel, axes=('blocks', 'features', None))
    self.bias = nnx.Param(jnp.zeros(outputs), axes=('block_units',))
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [g, N, inputs / g] to [g, N, outputs / g], blocks first."""
    return self.prepare()(x.astype(self.dtype))

  def prepare(self) -> scan.Layer:
    """Returns the layer for use in a loop."""
    kernel = by_block(self.kernel[...].astype(self.dtype))
    bias = self.bias[...].astype(self.dtype).reshape(len(kernel), 1, -1)
    bias = by_block(bias)
    return scan.Layer.create(matmul.linear, kernel, bias)

  def prepare_split(self, own: int, shared: int) -> scan.Layer:
    """Returns a part of the layer for use in a loop.

    It maps inputs of each block [g, N, own], inputs that all blocks share
    [N, shared] and the part [N, outputs] of all other inputs and the bias, to
    [g, N, outputs / g].
    """
    kernels = self.split_kernel(own)
    return scan.Layer.create(
      _add_shared,
      by_block(kernels[0]),
      placement.with_logical_constraint(
        kernels[1][:shared], None, 'block_units'
      ),
    )

  def split_kernel(self, own: int) -> tuple[jax.Array, jax.Array]:
    """Splits the kernel into inputs of one block and inputs shared by all.

    Args:
      own: Number of inputs that belong to one block; the others are shared.

    Returns:
      Kernels [g, own, outputs / g] and [shared, outputs].
    """
    kernel = self.kernel[...].astype(self.dtype)
    shared = jnp.swapaxes(kernel[:, own:], 0, 1)
    return kernel[:, :own], shared.reshape(shared.shape[0], -1)


def _add_shared(inputs, own_kernel, shared_kernel):
  own, shared, others = inputs
  x = matmul.product(shared, shared_kernel) + others
  return matmul.to_blocks(x, len(own_kernel)) + matmul.product(own, own_kernel)


def by_block(x: jax.Array) -> jax.Array:
  """Shards [g, ..., ...] by blocks."""
  return placement.with_logical_constraint(x, 'blocks', None, None)


class Norm(nnx.Module):
  """RMSNorm with a learned scale, and SiLU."""

  def __init__(self, size: int, *, axes: Axes = ('units',)):
    self.scale = nnx.Param(jnp.ones(size), axes=axes)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes over the last axis."""
    return norm.norm_silu(x, self.scale[...])

  def prepare(self) -> scan.Layer:
    """Returns the norm for use in a loop."""
    scale = placement.with_logical_constraint(self.scale[...], None)
    return scan.Layer.create(norm.norm_silu, scale)

  def prepare_blocks(self, blocks: int) -> scan.Layer:
    """Returns the norm over all of [g, N, size / g] for use in a loop."""
    scale = by_block(self.scale[...].reshape(blocks, 1, -1))
    norm_blocks = functools.partial(norm.norm_silu, axes=(-3, -1))
    return scan.Layer.create(norm_blocks, scale)


class Layer(nnx.Module):
  """Linear, RMSNorm, SiLU: [..., inputs] -> [..., units]."""

  def __init__(
    self, inputs: int, units: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
  ):
    self.linear = Linear(inputs, units, dtype=dtype, rngs=rngs)
    self.norm = Norm(units)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Applies the layer to [..., inputs]."""
    return self.norm(self.linear(x))

  def apply_split(self, *parts: jax.Array) -> jax.Array:
    """Applies the layer to split inputs; see `Linear.apply_split`."""
    return self.norm(self.linear.apply_split(*parts))

  def prepare(self, inputs: str | None = None) -> scan.Layer:
    """Returns the layer for use in a loop."""
    by_rows = lambda x: placement.with_logical_constraint(x, 'rows', None)
    linear = self.linear.prepare(inputs).then(scan.Layer.create(by_rows))
    return linear.then(self.norm.prepare())

  def prepare_split(self, inputs: int, axis: str) -> scan.Layer:
    """Returns a part of the layer for use in a loop.

    Args:
      inputs: Number of inputs of this part.
      axis: Logical axis over which the loop has them sharded.

    Returns:
      A layer that maps these inputs [N, inputs], and the part [N, units] of all
      other inputs and the bias, to [N, units].
    """
    kernel = self.linear.weights()[0][:inputs]
    kernel = placement.split_inputs(kernel, axis)
    linear = scan.Layer.create(_add_product, kernel)
    return linear.then(self.norm.prepare())


def _add_product(inputs, kernel):
  x, others = inputs
  y = matmul.product(x, kernel) + others
  return placement.with_logical_constraint(y, 'rows', None)


def prepare_pair(
  first: Layer, second: Layer, axes: tuple[str, str]
) -> scan.Layer:
  """Returns two layers for use in a loop, as one.

  Devices that share a model sum the products of both at once.

  Args:
    first: Layer.
    second: Layer with as many units.
    axes: Logical axes over which the loop has the inputs sharded.

  Returns:
    A layer that maps the inputs of both to their results, [N, 2 * units].
  """
  weights = first.linear.weights(), second.linear.weights()
  kernels = [
    placement.split_inputs(kernel, axis)
    for (kernel, _), axis in zip(weights, axes, strict=True)
  ]
  biases = jnp.stack([bias for _, bias in weights])
  scale = jnp.stack([x.norm.scale[...] for x in (first, second)])
  whole = lambda x: placement.with_logical_constraint(x, None, None)
  products = scan.Layer.create(_products, *kernels, whole(biases))
  normed = products.then(scan.Layer.create(norm.norm_silu, whole(scale)))
  flatten = lambda x: x.reshape(*x.shape[:-2], -1)
  return normed.then(scan.Layer.create(flatten))


def _products(inputs, first, second, biases):
  products = map(matmul.product, inputs, (first, second))
  y = jnp.stack([*products], -2) + biases
  return placement.with_logical_constraint(y, 'rows', None, None)


class MLP(nnx.Module):
  """A stack of layers of `units`: [..., inputs] -> [..., units]."""

  def __init__(
    self,
    inputs: int,
    units: int,
    layers: int,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    self.depth = layers
    for i in range(layers):
      layer = Layer(inputs if i == 0 else units, units, dtype=dtype, rngs=rngs)
      setattr(self, f'layer{i}', layer)

  @property
  def layers(self) -> list[Layer]:
    """All layers in order."""
    return [getattr(self, f'layer{i}') for i in range(self.depth)]

  def __call__(self, x: jax.Array) -> jax.Array:
    """Applies all layers to [..., inputs]."""
    for layer in self.layers:
      x = layer(x)
    return x

  def apply_split(self, *parts: jax.Array) -> jax.Array:
    """Applies all layers to split inputs; see `Linear.apply_split`."""
    return self.with_preactivations(*parts)[0]

  def with_preactivations(
    self, *parts: jax.Array, cached: Sequence[jax.Array] | None = None
  ) -> tuple[jax.Array, list[jax.Array]]:
    """Applies all layers to split inputs.

    Args:
      *parts: Inputs, see `Linear.apply_split`.
      cached: The preactivations, if they have been computed before.

    Returns:
      The output, and the preactivations [..., units] of all layers.
    """
    first, *rest = self.layers
    earlier: Sequence[jax.Array | None] = cached or [None] * self.depth
    results = [first.linear.apply_split(*parts, cached=earlier[0])]
    x = first.norm(results[0])
    for layer, result in zip(rest, earlier[1:], strict=True):
      results.append(layer.linear(x, cached=result))
      x = layer.norm(results[-1])
    return x, results


class Conv(nnx.Module):
  """Convolution with stride 1 and 'same' padding.

  Maps [N, h, w, inputs] to [N, h', w', outputs]; `op` is the convolution alone,
  or with upsampling or pooling.
  """

  def __init__(
    self,
    inputs: int,
    outputs: int,
    size: int,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    op: Callable[..., jax.Array] = convolution.conv,
  ):
    kernel = kernel_init(rngs.params(), (size, size, inputs, outputs))
    axes = (None, None, 'in_channels', 'channels')
    self.kernel = nnx.Param(kernel, axes=axes)
    self.bias = nnx.Param(jnp.zeros(outputs), axes=axes[3:])
    self.dtype = dtype
    self.op = op

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns images in the compute dtype."""
    return self.op(x.astype(self.dtype), self.kernel[...], self.bias[...])
