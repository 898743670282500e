"""Products with dense and block-diagonal kernels."""

import functools
import math

import jax
import jax.numpy as jnp

from dreamer_tpu.agent.ops import backend, scan

# Minimum rows per part of a gradient on CPU; smaller parts are slower.
_MIN_ROWS = 2**12


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Multiplies by a dense or block-diagonal kernel, in the dtype of both.

  Args:
    x: [..., i], or [g, N, i] with one row of `N` inputs per block.
    kernel: [i, o], or [g, i, o].

  Returns:
    [..., o], or [g, N, o].
  """
  if tape := scan.tape():
    return tape.apply(_multiply, _product_gradients, x, kernel)
  if kernel.ndim == 2 and backend.form() is backend.Form.CPU:
    return _product_on_cpu(x, kernel)
  return _multiply(x, kernel)


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """Computes `product(x, kernel) + bias`.

  Args:
    x: See `product`.
    kernel: See `product`.
    bias: [o], or [g, 1, o].
  """
  if tape := scan.tape():
    multiply = lambda x, kernel, bias: _multiply(x, kernel) + bias
    return tape.apply(multiply, _linear_gradients, x, kernel, bias)
  return product(x, kernel) + bias


def _multiply(x, kernel):
  if kernel.ndim == 2:
    return x @ kernel
  # Blocks first: in the middle, XLA for CPU takes 3 times as long.
  return jax.lax.dot_general(x, kernel, (((2,), (1,)), ((0,), (0,))))


@jax.custom_vjp
def _product_on_cpu(x, kernel):
  return x @ kernel


_product_on_cpu.defvjp(
  lambda x, kernel: (x @ kernel, (x, kernel)),
  lambda residuals, d_y: (
    d_y @ residuals[1].T,
    kernel_gradient(residuals[0], d_y),
  ),
)


def _product_gradients(x, d_y, kernel):
  """Kernel gradient from [T, N, ...], or from [T, g, N, ...] by block."""
  if kernel.ndim == 2:
    return (kernel_gradient(x, d_y),)
  if backend.form() is not backend.Form.CPU:
    return (jnp.einsum('tgni,tgno->gio', x, d_y),)
  # One product of all blocks would transpose `x` as a whole, which is slower.
  by_block = jnp.swapaxes(x, 0, 1), jnp.swapaxes(d_y, 0, 1)
  return (jax.lax.map(lambda xs: kernel_gradient(*xs), by_block),)


def _linear_gradients(x, d_y, kernel, bias):
  rows = (0, 1) if kernel.ndim == 2 else (0, 2)
  d_bias = d_y.sum(rows).reshape(bias.shape)
  return *_product_gradients(x, d_y, kernel), d_bias


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
  """Splits the last axis into leading blocks: [N, g * i] -> [g, N, i]."""
  return jnp.swapaxes(x.reshape(-1, blocks, x.shape[-1] // blocks), 0, 1)


def from_blocks(x: jax.Array) -> jax.Array:
  """Joins leading blocks along the last axis: [g, N, i] -> [N, g * i]."""
  return jnp.swapaxes(x, 0, 1).reshape(x.shape[1], -1)
