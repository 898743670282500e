"""Convolutions by cell against those by pixel, gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer_tpu.agent.ops import backend, convolution

SIZES = [3, 4, 5, 6]


def make(size):
  conv = convolution.Conv(
    3, 4, size, dtype=jnp.float32, rngs=nnx.Rngs(params=0)
  )
  conv.bias[...] = jnp.arange(4.0)
  return conv


def image(height=6, width=10, channels=3):
  shape = (2, height, width, channels)
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def upsample(x):
  return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)


def close(fn, other, *args):
  weight = image(*fn(*args).shape[1:])
  for f in (lambda f: f, lambda f: jax.grad(lambda *a: (f(*a) * weight).sum())):
    np.testing.assert_allclose(f(fn)(*args), f(other)(*args), atol=1e-4)


@pytest.mark.parametrize('size', SIZES)
def test_of_cells(size):
  conv = make(size)
  close(lambda x: convolution.to_pixels(conv.of_cells(x)), conv, image())


@pytest.mark.parametrize('size', SIZES)
def test_of_upsampled(size):
  conv = make(size)
  close(
    lambda x: convolution.to_pixels(conv.of_upsampled(x)),
    lambda x: conv(upsample(x)),
    image(),
  )


@pytest.mark.parametrize('size', SIZES)
def test_gradient_of_the_image(size):
  """Against that of JAX's own convolution."""
  kernel = make(size).kernel[...]
  padding = (size - 1) // 2, size // 2
  own = lambda x: jax.lax.conv_general_dilated(
    x, kernel, (1, 1), [padding] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  close(lambda x: convolution.convolve(x, kernel, padding), own, image())


@pytest.mark.parametrize('name', ['of_cells', 'of_upsampled'])
def test_gradient_of_the_kernel(name):
  conv = make(5)
  graph, params = nnx.split(conv)

  def grads(fn):
    loss = lambda params: (fn(nnx.merge(graph, params)) ** 2).sum()
    return nnx.to_pure_dict(jax.grad(loss)(params))

  big = upsample if name == 'of_upsampled' else lambda x: x
  actual = grads(lambda conv: getattr(conv, name)(image()))
  expected = grads(lambda conv: conv(big(image())))
  for k in ('kernel', 'bias'):
    np.testing.assert_allclose(actual[k], expected[k], rtol=1e-4, atol=1e-3)


def test_max_of_cells():
  x = image(4, 6)
  cells = lambda x: convolution.to_cells(x).reshape(2, 2, 3, 4, 3)
  y = convolution.max_of_cells(cells(x))
  quarters = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
  np.testing.assert_array_equal(y, np.stack(quarters).max(0))


def test_equal_maxima_share_the_gradient():
  x = jnp.array([1.0, 3, 3, 0, 2, 2, 2, 2]).reshape(1, 2, 1, 4, 1)
  grad = jax.grad(lambda x: convolution.max_of_cells(x).sum())(x)
  expected = [0, 0.5, 0.5, 0, 0.25, 0.25, 0.25, 0.25]
  np.testing.assert_allclose(grad.ravel(), expected)


@pytest.fixture
def on_cpu():
  with backend.using(backend.Backend(backend.Form.CPU)):
    yield


def kernel_gradient(x, d_y, size, dtype=jnp.float32):
  """By `convolve`, and what was compiled."""
  kernel = jnp.zeros((size, size, x.shape[-1], d_y.shape[-1]), dtype)
  padding = (size - 1) // 2, size // 2

  def gradient(x, d_y):
    convolve = lambda kernel: convolution.convolve(x, kernel, padding)
    return jax.vjp(convolve, kernel)[1](d_y)[0]

  compiled = jax.jit(gradient).lower(x, d_y).compile()
  return compiled(x, d_y), compiled.as_text()


def kernel_gradient_by_taps(x, d_y, size):
  """float64 [size, size, i, o], tap by tap."""
  x, d_y = np.float64(x), np.float64(d_y)
  height, width = x.shape[1:3]
  before = (size - 1) // 2
  around = (before, size // 2)
  x = np.pad(x, ((0, 0), around, around, (0, 0)))
  tap = lambda a, b: np.einsum(
    'nhwi,nhwo->io', x[:, a : a + height, b : b + width], d_y
  )
  return np.array([[tap(a, b) for b in range(size)] for a in range(size)])


@pytest.mark.usefixtures('on_cpu')
@pytest.mark.parametrize('size', SIZES)
def test_gradient_of_the_kernel_by_windows(size, monkeypatch):
  monkeypatch.setattr(convolution, '_CHUNK', 6 * 10 * 4)
  rng = np.random.default_rng(0)
  x, d_y = (
    jnp.asarray(rng.normal(size=(9, 6, 10, c)), jnp.float32) for c in (3, 4)
  )
  found, text = kernel_gradient(x, d_y, size)
  wanted = kernel_gradient_by_taps(x, d_y, size)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
  # Three images at a time: no more than four, and a divisor of nine.
  assert f'f32[{3 * size},{4 * size}]' in text
  assert 'f32[3,3,6,10,3]' in text
  with backend.using(backend.Backend(backend.Form.ACCELERATOR)):
    found, text = kernel_gradient(x, d_y, size)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
  assert f'f32[{3 * size},{4 * size}]' not in text


@pytest.mark.usefixtures('on_cpu')
def test_gradient_of_the_kernel_is_rounded_once():
  rng = np.random.default_rng(0)
  x, d_y = (
    jnp.asarray(rng.normal(size=(64, 16, 16, c)), jnp.bfloat16) for c in (3, 4)
  )
  found, _ = kernel_gradient(x, d_y, 5, jnp.bfloat16)
  assert found.dtype == jnp.bfloat16
  wanted = kernel_gradient_by_taps(x, d_y, 5)
  np.testing.assert_allclose(np.float64(found), wanted, rtol=2**-8, atol=1e-2)
