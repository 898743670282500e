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


@pytest.mark.parametrize(('platform', 'by_step'), [('cpu', 1), ('tpu', 0)])
def test_only_cpus_multiply_by_step(platform, by_step):
  x, kernel = jnp.ones(NARROW), jnp.ones((4, 9))
  loss = lambda kernel: layers.product(x, kernel).sum()
  lowered = (
    jax.jit(jax.grad(loss)).trace(kernel).lower(lowering_platforms=(platform,))
  )
  assert ('tensor<6x4x9xf32>' in lowered.as_text()) == by_step


def test_a_product_per_step_is_rounded_once():
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
  with placement.using(lambda x, axes: x):
    wanted, _ = gradients(jnp.matmul, NARROW, 9)
    found, text = gradients(layers.product, NARROW, 9)
  for a, b in zip(wanted, found, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4)
  assert 'f32[6,4,9]' not in text
