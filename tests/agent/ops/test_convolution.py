"""Tests every form of convolutions and pooling against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_tpu.agent.ops import backend, convolution
from dreamer_tpu.metrics import flops

FAST = [backend.Form.ACCELERATOR, backend.Form.CPU]
SIZES = [3, 4, 5, 6]
FEW, MANY = 3, 8  # Channels of the two fast forms of `conv`.
# Relative to the largest element of an array.
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}


def draw(*shape, dtype=jnp.float32):
  values = np.random.default_rng(len(shape)).normal(size=shape)
  return jnp.asarray(values, dtype)


def value_and_grads(form, fn, *args):
  """Returns the value of `fn` and the gradients of a weighted sum of it."""

  def weighted(*args):
    y = fn(*args)
    return (y.astype(jnp.float32) * draw(*y.shape)).sum(), y

  with backend.using(backend.Backend(form)):
    # XLA for CPU sums a bias gradient in bfloat16, in another order per form.
    bfloat16 = args[0].dtype == jnp.bfloat16
    numbers = tuple(range(min(2, len(args)) if bfloat16 else len(args)))
    grad = jax.grad(weighted, argnums=numbers, has_aux=True)
    return jax.jit(lambda *args: grad(*args))(*args)


def assert_agrees(form, fn, *args):
  actual = jax.tree.leaves(value_and_grads(form, fn, *args))
  reference = value_and_grads(backend.Form.REFERENCE, fn, *args)
  for x, expected in zip(actual, jax.tree.leaves(reference), strict=True):
    assert (x.shape, x.dtype) == (expected.shape, expected.dtype)
    x, expected = np.float64(x), np.float64(expected)
    atol = TOLERANCE[args[0].dtype.type] * np.abs(expected).max()
    np.testing.assert_allclose(x, expected, atol=atol, rtol=0)


@pytest.mark.parametrize('form', FAST)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('inputs', [FEW, MANY])
def test_conv(form, dtype, size, inputs):
  x = draw(2, 6, 10, inputs, dtype=dtype)
  kernel, bias = draw(size, size, inputs, 4), draw(4)
  assert_agrees(form, convolution.conv, x, kernel, bias)


@pytest.mark.parametrize('form', FAST)
def test_conv_of_odd_images(form):
  args = draw(2, 5, 10, FEW), draw(3, 3, FEW, 4), draw(4)
  assert_agrees(form, convolution.conv, *args)


@pytest.mark.parametrize('form', FAST)
@pytest.mark.parametrize('inputs', [FEW, MANY])
def test_conv_max_pool2x2(form, inputs):
  args = draw(2, 6, 10, inputs), draw(5, 5, inputs, 4), draw(4)
  assert_agrees(form, convolution.conv_max_pool2x2, *args)
  with backend.using(backend.Backend(form)):
    pooled = convolution.conv_max_pool2x2(*args)
  expected = convolution.conv(*args).reshape(2, 3, 2, 5, 2, 4).max((2, 4))
  np.testing.assert_allclose(pooled, expected, atol=1e-4)


@pytest.mark.parametrize('form', FAST)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('size', SIZES)
def test_upsample_conv(form, dtype, size):
  x = draw(2, 6, 10, 3, dtype=dtype)
  kernel, bias = draw(size, size, 3, 4), draw(4)
  assert_agrees(form, convolution.upsample_conv, x, kernel, bias)


@pytest.mark.parametrize('form', FAST)
@pytest.mark.parametrize('dtype', TOLERANCE)
def test_max_pool2x2(form, dtype):
  x = jnp.round(4 * draw(2, 4, 6, 3, dtype=dtype))  # Many maxima are equal.
  assert_agrees(form, convolution.max_pool2x2, x)


def test_space_to_depth_is_inverted():
  x = draw(2, 4, 6, 3)
  cells = convolution.space_to_depth(x)
  np.testing.assert_array_equal(cells[1, 0, 1, 3:6], x[1, 0, 3])
  np.testing.assert_array_equal(convolution.depth_to_space(cells), x)


@pytest.mark.parametrize('form', backend.Form)
def test_equal_maxima_share_the_gradient(form):
  x = jnp.array([[[1.0, 3], [3, 0]], [[2, 2], [2, 2]]])[..., None]
  with backend.using(backend.Backend(form)):
    grad = jax.grad(lambda x: convolution.max_pool2x2(x).sum())(x)
  expected = [0, 0.5, 0.5, 0, 0.25, 0.25, 0.25, 0.25]
  np.testing.assert_allclose(grad.ravel(), expected)


def kernel_gradient(form, x, d_y, size):
  """Returns the gradient of a kernel and the temporary memory in bytes."""
  kernel = jnp.zeros((size, size, x.shape[-1], d_y.shape[-1]))
  bias = jnp.zeros(d_y.shape[-1])

  def gradient(x, d_y):
    conv = lambda kernel: convolution.conv(x, kernel, bias)
    return jax.vjp(conv, kernel)[1](d_y)[0]

  with backend.using(backend.Backend(form)):
    compiled = jax.jit(gradient).lower(x, d_y).compile()
  return compiled(x, d_y), compiled.memory_analysis().temp_size_in_bytes


def kernel_gradient_by_taps(x, d_y, size):
  """Computes float64 [size, size, i, o] tap by tap."""
  x, d_y = np.float64(x), np.float64(d_y)
  height, width = x.shape[1:3]
  before = (size - 1) // 2
  around = (before, size // 2)
  x = np.pad(x, ((0, 0), around, around, (0, 0)))
  tap = lambda a, b: np.einsum(
    'nhwi,nhwo->io', x[:, a : a + height, b : b + width], d_y
  )
  return np.array([[tap(a, b) for b in range(size)] for a in range(size)])


@pytest.mark.parametrize('size', SIZES)
def test_kernel_gradient_takes_a_few_images_at_a_time(size, monkeypatch):
  x, d_y = draw(9, 6, 10, MANY), draw(9, 6, 10, 4)
  expected = kernel_gradient_by_taps(x, d_y, size)
  memory = {}
  # Three images at a time (at most four, and a divisor of nine), or all nine.
  for images in (4, 9):
    monkeypatch.setattr(convolution, '_CHUNK', 6 * 10 * images)
    actual, memory[images] = kernel_gradient(backend.Form.CPU, x, d_y, size)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)
  assert memory[4] < 0.6 * memory[9]


def test_kernel_gradient_is_rounded_once():
  x = draw(64, 16, 16, MANY, dtype=jnp.bfloat16)
  d_y = draw(64, 16, 16, 4, dtype=jnp.bfloat16)
  actual, _ = kernel_gradient(backend.Form.CPU, x, d_y, 5)
  expected = kernel_gradient_by_taps(x, d_y, 5)
  np.testing.assert_allclose(actual, expected, rtol=2**-8, atol=1e-2)


@pytest.mark.parametrize('form', FAST)
def test_upsample_conv_saves_flops(form):
  args = draw(1, 16, 16, 8), draw(5, 5, 8, 4), draw(4)
  matmul = {}
  for name in (form, backend.Form.REFERENCE):
    with backend.using(backend.Backend(name)):
      # A new function each time: JAX caches traces by function.
      upsample_conv = lambda *args: convolution.upsample_conv(*args)
      matmul[name] = flops.count(upsample_conv, *args).matmul
  assert matmul[form] <= 0.42 * matmul[backend.Form.REFERENCE]


@pytest.mark.parametrize('form', FAST)
def test_max_pool2x2_saves_one_bit_per_pixel(form):
  x = draw(2, 16, 16, 8)
  with backend.using(backend.Backend(form)):
    _, vjp = jax.vjp(convolution.max_pool2x2, x)
  saved = sum(leaf.nbytes for leaf in jax.tree.leaves(vjp))
  assert saved <= x.size / 4
