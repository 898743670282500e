"""Gradients of products, against those that JAX has by itself."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_tpu.agent import layers
from dreamer_tpu.agent.ops import backend

ROWS = (6, 64)  # are cut into three parts of 128.
IN_PARTS = 'f32[3,4,9]'


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
  monkeypatch.setattr(layers, '_ROWS', 100)
  with backend.using(backend.Backend(backend.Form.CPU)):
    yield


def gradients(product, x, outputs):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], x)
  kernel = jax.random.normal(keys[1], (x.shape[-1], outputs))
  weight = jax.random.normal(keys[2], (*x.shape[:-1], outputs))
  loss = lambda x, kernel: jnp.sum(weight * product(x, kernel))
  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile()
  return compiled(x, kernel), compiled.as_text()


@pytest.mark.parametrize(
  ('rows', 'inputs', 'outputs', 'in_parts'),
  [
    (ROWS, 4, 9, True),
    (ROWS, 9, 4, True),
    ((6, 8, 8), 4, 9, True),
    ((6, 32), 4, 9, False),  # too few rows
    ((7, 64), 4, 9, False),  # not to be cut
    ((384,), 4, 9, True),
    ((100,), 4, 9, False),
    ((), 4, 9, False),
  ],
)
def test_gradients(rows, inputs, outputs, in_parts):
  wanted, _ = gradients(jnp.matmul, (*rows, inputs), outputs)
  found, text = gradients(layers.product, (*rows, inputs), outputs)
  for a, b in zip(wanted, found, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4)
  assert (IN_PARTS in text) == in_parts


@pytest.mark.parametrize('rows', [(6, 32), ROWS])
def test_the_narrower_one_is_transposed(rows):
  """The product lies in memory as [narrower, wider], whatever it is called."""
  for inputs, outputs in [(4, 9), (9, 4)]:
    _, text = gradients(layers.product, (*rows, inputs), outputs)
    kernels = re.findall(r'f32\[(?:3,)?(4,9|9,4)\]\{([\d,]*)\} dot\(', text)
    assert len(kernels) == 1
    assert kernels[0] in [('4,9', '1,0'), ('4,9', '2,1,0'), ('9,4', '0,1')]


def test_a_product_in_parts_is_rounded_once():
  keys = jax.random.split(jax.random.key(0))
  x, d_z = (
    jax.random.normal(k, (64, 64, n)).astype(jnp.bfloat16)
    for k, n in zip(keys, (4, 9), strict=True)
  )
  _, back = jax.vjp(layers.product, x, jnp.ones((4, 9), jnp.bfloat16))
  wanted = np.einsum('tni,tno->io', *(np.float64(y) for y in (x, d_z)))
  found = back(d_z)[1]
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float64(found), wanted, rtol=2**-8, atol=1e-3)


def test_devices_sum_up_one_product():
  with backend.using(backend.Backend(backend.Form.ACCELERATOR)):
    wanted, _ = gradients(jnp.matmul, (*ROWS, 4), 9)
    found, text = gradients(layers.product, (*ROWS, 4), 9)
  for a, b in zip(wanted, found, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4)
  assert IN_PARTS not in text
