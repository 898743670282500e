"""Convolutions and max-pooling of images.

The faster forms work at the lower of two resolutions. Each of the four pixels
of an upsampled 2x2 cell is a smaller convolution of the image before
upsampling: a 5x5 kernel becomes 3x3 with four times the outputs, at 36% of the
FLOPs. An image of few channels is convolved faster with the pixels of its 2x2
cells as channels.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dreamer_tpu.agent.ops import backend

Padding = tuple[int, int]
# Images of fewer channels are convolved with their 2x2 cells as channels.
_FEW_CHANNELS = 8
# Pixels per matmul in kernel gradients on CPU, to stay in its caches.
_CHUNK = 2**13


def conv(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """Convolves images with stride 1 and 'same' padding.

  Args:
    x: [N, h, w, inputs] in the compute dtype.
    kernel: float32 [k, k, inputs, outputs].
    bias: float32 [outputs].

  Returns:
    [N, h, w, outputs] in the dtype of `x`.
  """
  chex.assert_rank([x, kernel, bias], [4, 4, 1])
  if _by_cells(x):
    return depth_to_space(_flat(_conv_cells(x, kernel, bias)))
  size = len(kernel)
  y = _convolve(x, kernel, ((size - 1) // 2, size // 2))
  return y + bias.astype(x.dtype)


def conv_max_pool2x2(
  x: jax.Array, kernel: jax.Array, bias: jax.Array
) -> jax.Array:
  """Convolves images and takes the maximum of 2x2 cells.

  Args:
    x: [N, h, w, inputs] in the compute dtype.
    kernel: float32 [k, k, inputs, outputs].
    bias: float32 [outputs].

  Returns:
    [N, h / 2, w / 2, outputs] in the dtype of `x`.
  """
  if _by_cells(x):
    return _max_of_four(_conv_cells(x, kernel, bias))
  return max_pool2x2(conv(x, kernel, bias))


def upsample_conv(
  x: jax.Array, kernel: jax.Array, bias: jax.Array
) -> jax.Array:
  """Upsamples images by two (nearest neighbor) and convolves them.

  Args:
    x: [N, h, w, inputs] in the compute dtype.
    kernel: float32 [k, k, inputs, outputs].
    bias: float32 [outputs].

  Returns:
    [N, 2 h, 2 w, outputs] in the dtype of `x`.
  """
  chex.assert_rank([x, kernel, bias], [4, 4, 1])
  if backend.form() is backend.Form.REFERENCE:
    return conv(x.repeat(2, 1).repeat(2, 2), kernel, bias)
  taps, padding = _taps(len(kernel))
  taps = taps.sum(1)
  kernel = jnp.einsum('atk,bul,klio->tuiabo', taps, taps, kernel)
  y = depth_to_space(_flat(_to_cells(x, kernel, bias, padding)))
  if backend.form() is backend.Form.CPU:
    return y
  # XLA for TPU would keep float32 copies of a following norm's input: 1.9
  # times the memory of the whole decoder.
  return jax.lax.optimization_barrier(y)


def max_pool2x2(x: jax.Array) -> jax.Array:
  """Returns the maximum of 2x2 cells: [N, h, w, c] -> [N, h / 2, w / 2, c].

  Equal maxima share the gradient.
  """
  chex.assert_rank(x, 4)
  n, h, w, c = x.shape
  if backend.form() is backend.Form.REFERENCE:
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
  return _max_of_four(space_to_depth(x).reshape(n, h // 2, w // 2, 4, c))


def space_to_depth(x: jax.Array) -> jax.Array:
  """[N, h, w, c] -> [N, h / 2, w / 2, 4 c], the pixels of 2x2 cells."""
  n, h, w, c = x.shape
  x = x.reshape(n, h // 2, 2, w // 2, 2, c).swapaxes(2, 3)
  return x.reshape(n, h // 2, w // 2, 4 * c)


def depth_to_space(x: jax.Array) -> jax.Array:
  """[N, h, w, 4 c] -> [N, 2 h, 2 w, c], the inverse of `space_to_depth`."""
  n, h, w, c = x.shape
  x = x.reshape(n, h, w, 2, 2, c // 4).swapaxes(2, 3)
  return x.reshape(n, 2 * h, 2 * w, c // 4)


def _by_cells(x):
  """Returns whether images are convolved with their cells as channels."""
  _, height, width, channels = x.shape
  possible = channels < _FEW_CHANNELS and height % 2 == width % 2 == 0
  return possible and backend.form() is not backend.Form.REFERENCE


def _conv_cells(x, kernel, bias):
  """Convolves images as `conv`, to cells [N, h / 2, w / 2, 4, outputs]."""
  taps, padding = _taps(len(kernel))
  kernel = jnp.einsum('actk,bdul,klio->tucdiabo', taps, taps, kernel)
  return _to_cells(space_to_depth(x), kernel, bias, padding)


def _to_cells(x, kernel, bias, padding):
  """Convolves to the four pixels of cells; kernel [t, u, ..., 2, 2, outputs].

  Returns:
    [N, h, w, 4, outputs]. With pixels and channels as one axis, XLA for TPU
    would move 30% more bytes in the encoder and take 1.8 times its memory.
  """
  kernel = kernel.reshape(*kernel.shape[:2], x.shape[-1], -1)
  y = _convolve(x, kernel, padding)
  return y.reshape(*y.shape[:3], 4, -1) + bias.astype(x.dtype)


def _flat(cells):
  """[N, h, w, 4, c] -> [N, h, w, 4 c]."""
  return cells.reshape(*cells.shape[:3], -1)


def _taps(size: int) -> tuple[np.ndarray, Padding]:
  """Maps the taps of a kernel along one axis to cells of two pixels.

  Args:
    size: Number of taps.

  Returns:
    float32 [2, 2, t, size], one where the output pixel a of a cell meets the
    input pixel c of the t-th cell with tap k; and the number of cells before
    and after the output cell.
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


def _convolve(x, kernel, padding):
  cpu = backend.form() is backend.Form.CPU
  fn = _cpu_convolve if cpu else _lax_convolve
  return fn(x, kernel.astype(x.dtype), padding)


def _lax_convolve(x, kernel, padding):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(1, 1),
    padding=[padding, padding],
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cpu_convolve(x, kernel, padding):
  return _lax_convolve(x, kernel, padding)


def _cpu_forward(x, kernel, padding):
  return _lax_convolve(x, kernel, padding), (x, kernel)


def _cpu_backward(padding, residuals, d_y):
  x, kernel = residuals
  # XLA for CPU is slow if it has to flip the kernel within the convolution.
  flipped = jax.lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
  d_x = _lax_convolve(d_y, flipped, padding[::-1])
  return d_x, _kernel_gradient(x, d_y, padding)


_cpu_convolve.defvjp(_cpu_forward, _cpu_backward)


def _kernel_gradient(x, d_y, padding):
  """Computes the kernel's gradient by matmuls over chunks of images.

  Concatenates k column-shifted copies of `x` and k row-shifted copies of
  `d_y`; one matmul of the two gives all kernel taps. The equivalent
  convolution takes up to 7 times as long.
  """
  before, after = padding
  size = before + after + 1
  images, height, width, inputs = x.shape
  most = max(1, _CHUNK // (height * width))
  count = max(n for n in range(1, most + 1) if images % n == 0)
  chunks = lambda x: x.reshape(-1, count, *x.shape[1:])

  def step(total, chunk):
    x, d_y = chunk
    product = jnp.einsum(
      '...i,...o->io',
      jnp.concatenate(_shifts(x, 2, before, after), -1),
      jnp.concatenate(_shifts(d_y, 1, after, before)[::-1], -1),
      preferred_element_type=jnp.float32,
    )
    return total + product, None

  zeros = jnp.zeros((size * inputs, size * d_y.shape[-1]), jnp.float32)
  total, _ = jax.lax.scan(step, zeros, (chunks(x), chunks(d_y)))
  taps = total.reshape(size, inputs, size, -1)
  return taps.transpose(2, 0, 1, 3).astype(x.dtype)


def _shifts(x, axis, before, after):
  """Shifts `x` along an axis from `before` ahead to `after` back, padded."""
  pads = [(0, 0)] * x.ndim
  pads[axis] = (before, after)
  padded = jnp.pad(x, pads)
  return [
    jax.lax.slice_in_dim(padded, start, start + x.shape[axis], axis=axis)
    for start in range(before + after + 1)
  ]


@jax.custom_vjp
def _max_of_four(x):
  """Maximum over the pixels of cells [..., 4, c]; saves one bit per pixel."""
  return functools.reduce(jnp.maximum, jnp.split(_flat(x), 4, -1))


def _max_forward(x):
  y = _max_of_four(x)
  equal = [
    (pixel == y).astype(jnp.uint8) for pixel in jnp.split(_flat(x), 4, -1)
  ]
  bits = sum(x << i for i, x in enumerate(equal))
  # Without the barrier, XLA saves `x` and compares in the backward pass.
  return jax.lax.optimization_barrier((y, bits))


def _max_backward(bits, d_y):
  count = sum((bits >> i & 1).astype(d_y.dtype) for i in range(4))
  share = d_y / jnp.maximum(1, count)
  pixel = jnp.arange(4, dtype=jnp.uint8)[:, None]
  chosen = bits[..., None, :] >> pixel & 1
  d_x = share[..., None, :] * chosen.astype(d_y.dtype)
  return (jax.lax.optimization_barrier(d_x),)


_max_of_four.defvjp(_max_forward, _max_backward)
