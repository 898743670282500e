"""Linear layers and norms, with logical axis names.

Parameters are float32; products run in the compute dtype. Every parameter
carries `axes`, one logical name per dimension, from which the sharding rules
derive where it lives.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from dreamer_tpu.agent.ops import backend, convolution, placement

Axes = tuple[str | None, ...]
# Of a part of a product on CPUs: fewer, and it is slower than all at once.
_ROWS = 2**12


def truncated_normal(
  key: jax.Array, shape: tuple[int, ...], fan_in: int, outscale: float = 1.0
) -> jax.Array:
  """float32 normal, cut at two standard deviations, of variance 1 / fan_in.

  1.1368 restores the variance that the truncation takes away.
  """
  noise = jax.random.truncated_normal(key, -2.0, 2.0, shape)
  return noise * (1.1368 * outscale / math.sqrt(fan_in))


def rms_norm(
  x: jax.Array, scale: jax.Array, axes: int | tuple[int, ...] = -1
) -> jax.Array:
  """RMSNorm over some axes in float32; same shape and dtype as `x`."""
  wide = x.astype(jnp.float32)
  return (wide * _inverse_rms(wide, axes) * scale).astype(x.dtype)


def _inverse_rms(x: jax.Array, axes: int | tuple[int, ...]) -> jax.Array:
  power = jnp.mean(jnp.square(x), axes, keepdims=True)
  return jax.lax.rsqrt(power + 1e-4)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def norm_silu(
  x: jax.Array, scale: jax.Array, axes: int | tuple[int, ...] = -1
) -> jax.Array:
  """RMSNorm over some axes and SiLU; same shape and dtype as `x`.

  Of all that its gradient needs only `x` is kept.
  """
  return jax.nn.silu(rms_norm(x, scale, axes))


def _norm_silu_forward(x, scale, axes):
  return norm_silu(x, scale, axes), (x, scale)


def _norm_silu_backward(axes, residuals, cotangent):
  x, scale = residuals
  wide = x.astype(jnp.float32)
  inverse = placement.materialize(_inverse_rms(wide, axes))
  unit = wide * inverse
  y = unit * scale
  gate = jax.nn.sigmoid(y)
  d_y = cotangent.astype(jnp.float32) * (gate + y * gate * (1 - gate))
  d_unit = d_y * scale
  mean = placement.materialize(jnp.mean(d_unit * unit, axes, keepdims=True))
  d_x = inverse * (d_unit - unit * mean)
  return d_x.astype(x.dtype), _sum_to(d_y * unit, scale.shape)


norm_silu.defvjp(_norm_silu_forward, _norm_silu_backward)


class NormSlopes(NamedTuple):
  """What the way back through `norm_silu` multiplies by.

  Loops over steps take these of all steps, so that a step computes neither
  exponentials nor the statistics of what is known beforehand.

  Attributes:
    slope: Like `x`, of SiLU, times scale and inverse RMS.
    unit: Like `x`, what the scale multiplies.
  """

  slope: jax.Array
  unit: jax.Array

  def back(
    self, cotangent: jax.Array, axes: int | tuple[int, ...] = -1
  ) -> jax.Array:
    """Cotangent of `x`, from that of the result and in its dtype."""
    slope, unit = (x.astype(jnp.float32) for x in self)
    scaled = cotangent.astype(jnp.float32) * slope
    mean = jnp.mean(scaled * unit, axes, keepdims=True)
    return (scaled - unit * mean).astype(cotangent.dtype)


def norm_slopes(
  x: jax.Array, scale: jax.Array, axes: int | tuple[int, ...] = -1
) -> NormSlopes:
  """The slopes of `norm_silu` at `x`, in its dtype."""
  wide = x.astype(jnp.float32)
  inverse = _inverse_rms(wide, axes)
  unit = wide * inverse
  gate = jax.nn.sigmoid(unit * scale)
  slope = gate + unit * scale * gate * (1 - gate)
  return NormSlopes(
    (slope * scale * inverse).astype(x.dtype), unit.astype(x.dtype)
  )


def _sum_to(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Undoes broadcasting from `shape`."""
  x = x.sum(tuple(range(x.ndim - len(shape))))
  ones = tuple(i for i, n in enumerate(shape) if n == 1 != x.shape[i])
  return x.sum(ones, keepdims=True)


def cast(params: Any, dtype: jnp.dtype) -> Any:
  """Parameters as products take them; the scales of norms stay float32.

  For loops: XLA would cast them anew in every step.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x if path[-1].key == 'scale' else x.astype(dtype), params
  )


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[..., i] [i, o] -> [..., o] in their dtype; see `kernel_gradient`."""
  return x @ kernel


def _product_forward(x, kernel):
  return x @ kernel, (x, kernel)


def _product_backward(residuals, d_z):
  x, kernel = residuals
  return d_z @ kernel.T, kernel_gradient(x, d_z)


product.defvjp(_product_forward, _product_backward)


def kernel_gradient(x: jax.Array, d_z: jax.Array) -> jax.Array:
  """[..., i] [..., o] -> [i, o] in their dtype: the sum over all rows.

  XLA for CPU transposes all rows of `x` first, which takes as long as the
  product where either is narrow. Products of parts, of which the narrower one
  is transposed, take 0.4 to 1 of the time.
  """
  if backend.form() is backend.Form.CPU:
    return _in_parts(x, d_z)
  return jnp.einsum('...i,...o->io', x, d_z)


def _in_parts(x, d_z):
  einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  x, d_z = (_cut(x) for x in (x, d_z))
  if x.shape[-1] > d_z.shape[-1]:
    turned = einsum('pni,pno->poi', x, d_z).sum(0)
    # Else XLA turns the product, not its result.
    kernel = jax.lax.optimization_barrier(turned).T
  else:
    kernel = einsum('pni,pno->pio', x, d_z).sum(0)
  return kernel.astype(d_z.dtype)


def _cut(x):
  """[p, n, units], in as many parts of the first axis as have enough rows."""
  most = max(1, math.prod(x.shape[:-1]) // _ROWS)
  parts = max(n for n in range(1, most + 1) if len(x) % n == 0)
  return x.reshape(parts, -1, x.shape[-1])


class Linear(nnx.Module):
  """x @ kernel + bias: [..., inputs] -> [..., outputs].

  A result that has been computed before is taken as `known`; see `recall`.
  """

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
    kernel = truncated_normal(
      rngs.params(), (inputs, outputs), inputs, outscale
    )
    self.kernel = nnx.Param(kernel, axes=axes)
    self.bias = nnx.Param(jnp.zeros(outputs), axes=axes[1:])
    self.dtype = dtype

  def __call__(self, x: jax.Array, known: jax.Array | None = None) -> jax.Array:
    kernel = self.kernel[...].astype(self.dtype)
    bias = self.bias[...].astype(self.dtype)
    linear = lambda x, kernel, bias: product(x, kernel) + bias
    return recall(linear, known, x.astype(self.dtype), kernel, bias)

  def of_state(
    self, *parts: jax.Array, known: jax.Array | None = None
  ) -> jax.Array:
    """The same of parts of the model's state, side by side.

    Devices that share a model hold a piece of every part. Each multiplies it
    by its rows of the kernel, and results are summed up: that is less to send
    and to hold than whole inputs are.
    """
    kernel = self.kernel[...].astype(self.dtype)
    ends = [*itertools.accumulate(x.shape[-1] for x in parts)]
    kernels = [
      placement.split_inputs(k, 'units') for k in jnp.split(kernel, ends[:-1])
    ]
    bias = self.bias[...].astype(self.dtype)
    inputs = [x.astype(self.dtype) for x in parts]
    return recall(_of_parts, known, inputs, kernels, bias)


def _of_parts(parts, kernels, bias):
  x = functools.reduce(jnp.add, map(product, parts, kernels))
  return (
    placement.with_logical_constraint(x, *['any'] * (x.ndim - 1), 'units')
    + bias
  )


def recall(fn: Callable, known: jax.Array | None, *args: Any) -> jax.Array:
  """`fn(*args)`, or if that is known, it with the gradient of `fn` at `args`.

  Args:
    fn: Needs no more than `args` for its gradient.
    known: What `fn(*args)` has been, without a gradient; None to compute it.
    *args: Trees of arrays.
  """
  if known is None:
    return fn(*args)

  @jax.custom_vjp
  def recalled(known, *args):
    return known

  recalled.defvjp(
    lambda known, *args: (known, args),
    lambda args, cotangent: (None, *jax.vjp(fn, *args)[1](cotangent)),
  )
  return recalled(known, *args)


class BlockLinear(nnx.Module):
  """Block-diagonal linear layer: [..., inputs] -> [N, outputs].

  The kernel is [blocks, inputs / blocks, outputs / blocks]; block g maps the
  g-th slice of the input to the g-th slice of the output. N is all leading
  axes in one.
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
    kernel = truncated_normal(rngs.params(), shape, inputs)
    self.kernel = nnx.Param(kernel, axes=('blocks', 'features', None))
    self.bias = nnx.Param(jnp.zeros(outputs), axes=('block_units',))
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    blocks = self.kernel.shape[0]
    return from_blocks(self.by_block(to_blocks(x, blocks)))

  def by_block(self, x: jax.Array) -> jax.Array:
    """The same on [blocks, N, inputs / blocks], blocks first."""
    kernel = self.kernel[...].astype(self.dtype)
    bias = self.bias[...].astype(self.dtype).reshape(len(kernel), 1, -1)
    return block_product(x.astype(self.dtype), kernel) + bias


def block_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """[g, N, i] times [g, i, o] -> [g, N, o].

  With the blocks first this is a plain batched product. With the blocks in
  the middle, XLA takes 3 times as long for it on CPU.
  """
  return jax.lax.dot_general(x, kernel, (((2,), (1,)), ((0,), (0,))))


def to_blocks(x: jax.Array, blocks: int) -> jax.Array:
  """[..., g * i] -> [g, N, i], where N is all leading axes in one."""
  chex.assert_is_divisible(x.shape[-1], blocks)
  return jnp.swapaxes(x.reshape(-1, blocks, x.shape[-1] // blocks), 0, 1)


def from_blocks(x: jax.Array) -> jax.Array:
  """[g, N, o] -> [N, g * o]."""
  return jnp.swapaxes(x, 0, 1).reshape(x.shape[1], -1)


class Norm(nnx.Module):
  """RMSNorm with a learned scale, over the last axis, and SiLU."""

  def __init__(self, size: int, *, axes: Axes = ('units',)):
    self.scale = nnx.Param(jnp.ones(size), axes=axes)

  def __call__(self, x: jax.Array) -> jax.Array:
    return norm_silu(x, self.scale[...])


class Layer(nnx.Module):
  """Linear, RMSNorm, SiLU: [..., inputs] -> [..., units]."""

  def __init__(
    self, inputs: int, units: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
  ):
    self.linear = Linear(inputs, units, dtype=dtype, rngs=rngs)
    self.norm = Norm(units)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.norm(self.linear(x))

  def of_state(self, *parts: jax.Array) -> jax.Array:
    """See `Linear.of_state`."""
    return self.norm(self.linear.of_state(*parts))


class MLP(nnx.Module):
  """`layers` layers of `units`: [..., inputs] -> [..., units]."""

  def __init__(
    self,
    inputs: int,
    units: int,
    layers: int,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    self.layers = layers
    for i in range(layers):
      layer = Layer(inputs if i == 0 else units, units, dtype=dtype, rngs=rngs)
      setattr(self, f'layer{i}', layer)

  def __call__(self, x: jax.Array) -> jax.Array:
    for i in range(self.layers):
      x = self.layer(i)(x)
    return x

  def of_state(self, *parts: jax.Array) -> jax.Array:
    """See `Linear.of_state`."""
    return self.recalling(*parts)[0]

  def recalling(
    self, *parts: jax.Array, known: Sequence[jax.Array] | None = None
  ) -> tuple[jax.Array, list[jax.Array]]:
    """`of_state`, and the results [..., units] of linear layers on the way.

    Args:
      *parts: See `Linear.of_state`.
      known: These results, if they have been computed before.
    """
    before: Sequence[jax.Array | None] = known or [None] * self.layers
    results = [self.layer(0).linear.of_state(*parts, known=before[0])]
    x = self.layer(0).norm(results[0])
    for i in range(1, self.layers):
      results.append(self.layer(i).linear(x, known=before[i]))
      x = self.layer(i).norm(results[i])
    return x, results

  def layer(self, i: int) -> Layer:
    """Layer number `i`."""
    return getattr(self, f'layer{i}')


class Conv(nnx.Module):
  """Convolution with stride 1 and 'same' padding.

  Maps [N, h, w, inputs] to [N, h, w, outputs]; with `upsample`, to twice the
  height and width.
  """

  def __init__(
    self,
    inputs: int,
    outputs: int,
    size: int,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    upsample: bool = False,
  ):
    shape = (size, size, inputs, outputs)
    kernel = truncated_normal(rngs.params(), shape, size * size * inputs)
    axes = (None, None, 'in_channels', 'channels')
    self.kernel = nnx.Param(kernel, axes=axes)
    self.bias = nnx.Param(jnp.zeros(outputs), axes=axes[3:])
    self.dtype = dtype
    self.upsample = upsample

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns images in the compute dtype."""
    conv = convolution.upsample_conv if self.upsample else convolution.conv
    return conv(x.astype(self.dtype), self.kernel[...], self.bias[...])
