"""Products with dense and block-diagonal kernels."""

import functools
import math

import jax
import jax.numpy as jnp

from dreamer_tpu.agent.ops import backend

# Minimum rows per part of a gradient on CPU; smaller parts are slower.
_MIN_ROWS = 2**12


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Multiplies by a dense or block-diagonal kernel, in the dtype of both.

  Args:
    x: [..., i], or [..., g, N, i] with one row of `N` inputs per block.
    kernel: [i, o], or [g, i, o].

  Returns:
    [..., o], or [..., g, N, o].
  """
  if backend.form() is backend.Form.CPU and (kernel.ndim == 2 or x.ndim > 3):
    return _product_on_cpu(x, kernel)
  return _multiply(x, kernel)


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """Computes `product(x, kernel) + bias`.

  Args:
    x: See `product`.
    kernel: See `product`.
    bias: [o], or [g, 1, o].
  """
  return product(x, kernel) + bias


def _multiply(x, kernel):
  if kernel.ndim == 2:
    return x @ kernel
  if x.ndim > 3:
    return jnp.einsum('...gni,gio->...gno', x, kernel)
  # Blocks first: in the middle, XLA for CPU takes 3 times as long.
  return jax.lax.dot_general(x, kernel, (((2,), (1,)), ((0,), (0,))))


@jax.custom_vjp
def _product_on_cpu(x, kernel):
  return _multiply(x, kernel)


def _product_on_cpu_backward(residuals, d_y):
  x, kernel = residuals
  d_x = _multiply(d_y, jnp.swapaxes(kernel, -1, -2))
  if kernel.ndim == 2:
    return d_x, kernel_gradient(x, d_y)
  # One product of all blocks would transpose `x` as a whole, which is slower.
  by_block = jnp.moveaxis(x, -3, 0), jnp.moveaxis(d_y, -3, 0)
  return d_x, jax.lax.map(lambda xs: kernel_gradient(*xs), by_block)


_product_on_cpu.defvjp(
  lambda x, kernel: (_multiply(x, kernel), (x, kernel)),
  _product_on_cpu_backward,
)


def kernel_gradient(x: jax.Array, d_y: jax.Array) -> jax.Array:
  """Returns the gradient [i, o] of a dense kernel, summed over all rows.

  XLA for CPU transposes all rows of `x` first, which takes as long as the
  product where either is narrow. Products of parts, of which the narrower one
  is transposed, take 0.4 to 1 of the time.

  Args:
    x: Inputs [..., i].
    d_y: Cotangents [..., o] of the results.
  """
  if backend.form() is backend.Form.CPU:
    return _kernel_gradient_in_parts(x, d_y)
  return jnp.einsum('...i,...o->io', x, d_y)


def _kernel_gradient_in_parts(x, d_y):
  einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  x, d_y = (_split_rows(x) for x in (x, d_y))
  if x.shape[-1] > d_y.shape[-1]:
    transposed = einsum('pni,pno->poi', x, d_y).sum(0)
    # Without the barrier XLA transposes the inputs, not the result.
    kernel = jax.lax.optimization_barrier(transposed).T
  else:
    kernel = einsum('pni,pno->pio', x, d_y).sum(0)
  return kernel.astype(d_y.dtype)


def _split_rows(x):
  """Cuts [..., n] into [parts, rows, n] along the first axis."""
  most = max(1, math.prod(x.shape[:-1]) // _MIN_ROWS)
  parts = max(n for n in range(1, most + 1) if len(x) % n == 0)
  return x.reshape(parts, -1, x.shape[-1])


def to_blocks(x: jax.Array, blocks: int) -> jax.Array:
  """Splits the last axis into blocks: [..., N, g * i] -> [..., g, N, i]."""
  x = x.reshape(*x.shape[:-1], blocks, x.shape[-1] // blocks)
  return jnp.swapaxes(x, -3, -2)


def from_blocks(x: jax.Array) -> jax.Array:
  """Joins leading blocks along the last axis: [g, N, i] -> [N, g * i]."""
  if backend.form() is backend.Form.CPU:
    return _concatenate_blocks(x)
  return jnp.swapaxes(x, 0, 1).reshape(x.shape[1], -1)


@jax.custom_vjp
def _concatenate_blocks(x):
  """Keeps XLA for CPU from computing `x` inside of a transpose, slowly."""
  return jnp.concatenate([*x], -1)


_concatenate_blocks.defvjp(
  lambda x: (_concatenate_blocks(x), len(x)),
  lambda blocks, d_y: (to_blocks(d_y, blocks),),
)
