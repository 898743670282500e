"""Gradients of products, against those that JAX has by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_tpu.agent import layers, placement

NARROW, WIDE = (6, 64, 4), (6, 64, 9)  # [T, N, ...], with kernels of 4 and 9.


def gradients(product, x, outputs):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], x)
  kernel = jax.random.normal(keys[1], (x.shape[-1], outputs))
  weight = jax.random.normal(keys[2], (*x.shape[:-1], outputs))
  loss = lambda x, kernel: jnp.sum(weight * product(x, kernel))
  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile()
  return compiled(x, kernel), compiled.as_text()


@pytest.mark.parametrize(
  ('x', 'outputs', 'by_step'),
  [
    (NARROW, 9, '[6,4,9]'),
    (WIDE, 4, '[6,4,9]'),
    ((6, 4, 4), 9, None),  # few rows
    ((64, 4), 9, None),
    ((4,), 9, None),
  ],
)
def test_gradients(x, outputs, by_step):
  wanted, _ = gradients(jnp.matmul, x, outputs)
  found, text = gradients(layers.product, x, outputs)
  for a, b in zip(wanted, found, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4)
  assert by_step is None or f'f32{by_step}' in text


def test_devices_sum_up_one_product():
  with placement.using(lambda x, axes: x):
    wanted, _ = gradients(jnp.matmul, NARROW, 9)
    found, text = gradients(layers.product, NARROW, 9)
  for a, b in zip(wanted, found, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4)
  assert 'f32[6,4,9]' not in text
