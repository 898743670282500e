"""Convolutions that halve or double an image, at the lower resolution.

A convolution of an image upsampled by two is, for each of the four positions
within a 2x2 cell, a smaller one of the image itself: a 5x5 kernel becomes 3x3
with four times the outputs, at 36% of the operations and without the upsampled
image. And an image with few channels is convolved faster when its 2x2 cells
are channels. The positions are an axis of four until something needs pixels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreamer_tpu.agent.layers import truncated_normal
from dreamer_tpu.agent.ops import backend

Padding = tuple[int, int]
# Pixels whose windows, at the channels of small models, fit into a cache.
_CHUNK = 2**13


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
  """[N, h, w, i] by [k, k, i, o] -> [N, h, w, o]; its gradient is fast on CPUs.

  Args:
    x: Images or cells.
    kernel: In the same dtype.
    padding: Zeros before and after each axis, k - 1 in all.
  """
  return _convolve(x, kernel, padding)


def _convolve(x, kernel, padding):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(1, 1),
    padding=[padding, padding],
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _convolve_forward(x, kernel, padding):
  return _convolve(x, kernel, padding), (x, kernel)


def _convolve_backward(padding, residuals, d_y):
  x, kernel = residuals
  on_cpu = backend.form() is backend.Form.CPU
  return (_on_cpu if on_cpu else _transposed)(padding, x, kernel, d_y)


def _transposed(padding, x, kernel, d_y):
  """Cotangents of image and kernel, as convolutions."""
  of_image = lambda x: _convolve(x, kernel, padding)
  of_kernel = lambda kernel: _convolve(x, kernel, padding)
  (d_x,) = jax.linear_transpose(of_image, x)(d_y)
  (d_kernel,) = jax.linear_transpose(of_kernel, kernel)(d_y)
  return d_x, d_kernel


def _on_cpu(padding, x, kernel, d_y):
  """The same; XLA has a fast convolution only for kernels as they are."""
  turned = jax.lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
  d_x = _convolve(d_y, turned, padding[::-1])
  return d_x, _kernel_by_windows(x, d_y, padding)


def _kernel_by_windows(x, d_y, padding):
  """Cotangent of the kernel as products, a few images at a time.

  Of `x` there are k copies side by side, each moved by a column, and of `d_y`
  k, each moved by a row: all pairs of these in one product are the taps. As a
  convolution, whose window is the whole image, it takes up to 7 times as long.
  """
  before, after = padding
  size = before + after + 1
  inputs, outputs = x.shape[-1], d_y.shape[-1]
  count = _images_at_once(*x.shape[:3])
  chunks = lambda x: x.reshape(-1, count, *x.shape[1:])

  def step(total, images):
    x, d_y = images
    columns = _moved(x, 2, before, after)
    rows = _moved(d_y, 1, after, before)[::-1]
    product = jnp.einsum(
      '...i,...o->io',
      jnp.concatenate(columns, -1),
      jnp.concatenate(rows, -1),
      preferred_element_type=jnp.float32,
    )
    return total + product, None

  zeros = jnp.zeros((size * inputs, size * outputs), jnp.float32)
  total, _ = jax.lax.scan(step, zeros, (chunks(x), chunks(d_y)))
  taps = total.reshape(size, inputs, size, outputs)
  return taps.transpose(2, 0, 1, 3).astype(x.dtype)


def _images_at_once(images: int, height: int, width: int) -> int:
  """The largest divisor of `images` with no more than a chunk of pixels."""
  most = max(1, _CHUNK // (height * width))
  return max(n for n in range(1, most + 1) if images % n == 0)


def _moved(x, axis, before, after):
  """`x` from `before` places earlier to `after` places later along an axis."""
  pads = [(0, 0)] * x.ndim
  pads[axis] = (before, after)
  padded = jnp.pad(x, pads)
  return [
    jax.lax.slice_in_dim(padded, start, start + x.shape[axis], axis=axis)
    for start in range(before + after + 1)
  ]


convolve.defvjp(_convolve_forward, _convolve_backward)


class Conv(nnx.Module):
  """Convolution, stride 1, 'same': [N, h, w, inputs] -> [N, h, w, outputs]."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    size: int,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    shape = (size, size, inputs, outputs)
    kernel = truncated_normal(rngs.params(), shape, size * size * inputs)
    axes = (None, None, 'in_channels', 'channels')
    self.kernel = nnx.Param(kernel, axes=axes)
    self.bias = nnx.Param(jnp.zeros(outputs), axes=('channels',))
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    size = len(self.kernel)
    same = (size - 1) // 2, size // 2
    return self._convolve(x, self.kernel[...], same) + self._bias()

  def of_cells(self, x: jax.Array) -> jax.Array:
    """The same by cell: [N, h, w, inputs] -> [N, h / 2, w / 2, 4, outputs]."""
    taps, padding = _taps(len(self.kernel))
    kernel = jnp.einsum(
      'actk,bdul,klio->tucdiabo', taps, taps, self.kernel[...]
    )
    return self._by_cell(to_cells(x), kernel, padding)

  def of_upsampled(self, x: jax.Array) -> jax.Array:
    """Of the nearest neighbours, twice the size, by cell.

    [N, h, w, inputs] -> [N, h, w, 4, outputs].
    """
    taps, padding = _taps(len(self.kernel))
    taps = taps.sum(1)
    kernel = jnp.einsum('atk,bul,klio->tuiabo', taps, taps, self.kernel[...])
    return self._by_cell(x, kernel, padding)

  def _by_cell(self, x, kernel, padding):
    outputs = kernel.shape[-1]
    kernel = kernel.reshape(*kernel.shape[:2], x.shape[-1], 4 * outputs)
    y = self._convolve(x, kernel, padding)
    return y.reshape(*y.shape[:-1], 4, outputs) + self._bias()

  def _convolve(self, x, kernel, padding):
    return convolve(x.astype(self.dtype), kernel.astype(self.dtype), padding)

  def _bias(self):
    return self.bias[...].astype(self.dtype)


def _taps(size: int) -> tuple[np.ndarray, Padding]:
  """How a kernel along one axis meets cells of two pixels.

  Returns:
    float32 [2, 2, t, size], one where an output at position a of its cell
    meets, with tap k, the pixel at position c of the cell t; and how many
    cells before and after the output's own there are.
  """
  before = (size - 1) // 2
  first = -before // 2
  last = (size - before) // 2
  taps = np.zeros((2, 2, last - first + 1, size), np.float32)
  for a in range(2):
    for k in range(size):
      cell, c = divmod(a + k - before, 2)
      taps[a, c, cell - first, k] = 1
  return taps, (-first, last)


def to_cells(x: jax.Array) -> jax.Array:
  """[N, h, w, c] -> [N, h / 2, w / 2, 4 c], the pixels of each 2x2 cell."""
  n, h, w, c = x.shape
  x = x.reshape(n, h // 2, 2, w // 2, 2, c).swapaxes(2, 3)
  return x.reshape(n, h // 2, w // 2, 4 * c)


def to_pixels(x: jax.Array) -> jax.Array:
  """[N, h, w, 4, c] -> [N, 2 h, 2 w, c]."""
  n, h, w, _, c = x.shape
  x = x.reshape(n, h, w, 2, 2, c).swapaxes(2, 3)
  return x.reshape(n, 2 * h, 2 * w, c)


@jax.custom_vjp
def max_of_cells(x: jax.Array) -> jax.Array:
  """Maximum over 2x2 cells: [N, h, w, 4, c] -> [N, h, w, c].

  Its gradient keeps a bit for each of the four, and nothing else.
  """
  first, *others = _parts(x)
  return functools.reduce(jnp.maximum, others, first)


def _parts(x):
  """The four pixels of cells, cut as the convolution leaves them."""
  return jnp.split(x.reshape(*x.shape[:3], -1), 4, -1)


def _max_forward(x):
  y = max_of_cells(x)
  equal = [(part == y).astype(jnp.uint8) for part in _parts(x)]
  bits = sum(x << i for i, x in enumerate(equal))
  # Without this, XLA keeps `x` and compares in the backward pass.
  return jax.lax.optimization_barrier((y, bits))


def _max_backward(bits, cotangent):
  """Equal maxima share the cotangent."""
  count = sum((bits >> i & 1).astype(cotangent.dtype) for i in range(4))
  share = cotangent / jnp.maximum(1, count)
  position = jnp.arange(4, dtype=jnp.uint8)[:, None]
  chosen = bits[..., None, :] >> position & 1
  grad = share[..., None, :] * chosen.astype(share.dtype)
  return (jax.lax.optimization_barrier(grad),)


max_of_cells.defvjp(_max_forward, _max_backward)
