"""Convolutions by cell against those by pixel, gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer_tpu.agent import convolutions

SIZES = [3, 4, 5, 6]


def make(size):
  conv = convolutions.Conv(
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
  close(lambda x: convolutions.to_pixels(conv.of_cells(x)), conv, image())


@pytest.mark.parametrize('size', SIZES)
def test_of_upsampled(size):
  conv = make(size)
  close(
    lambda x: convolutions.to_pixels(conv.of_upsampled(x)),
    lambda x: conv(upsample(x)),
    image(),
  )


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
  cells = lambda x: convolutions.to_cells(x).reshape(2, 2, 3, 4, 3)
  y = convolutions.max_of_cells(cells(x))
  quarters = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
  np.testing.assert_array_equal(y, np.stack(quarters).max(0))


def test_equal_maxima_share_the_gradient():
  x = jnp.array([1.0, 3, 3, 0, 2, 2, 2, 2]).reshape(1, 2, 1, 4, 1)
  grad = jax.grad(lambda x: convolutions.max_of_cells(x).sum())(x)
  expected = [0, 0.5, 0.5, 0, 0.25, 0.25, 0.25, 0.25]
  np.testing.assert_allclose(grad.ravel(), expected)
