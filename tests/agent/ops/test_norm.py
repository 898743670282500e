"""`norm_silu` against its reference form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_tpu.agent.ops import backend, norm


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('form', [backend.Form.ACCELERATOR, backend.Form.CPU])
@pytest.mark.parametrize(
  ('shape', 'scale', 'axes'),
  [
    ((6, 5), (5,), -1),
    ((2, 3, 7, 5), (5,), -1),
    ((3, 7, 5), (3, 1, 5), (-3, -1)),
  ],
  ids=['rows', 'images', 'blocks'],
)
def test_values_and_gradients(shape, scale, axes, form, dtype):
  keys = jax.random.split(jax.random.key(0), 3)
  x = (3 * jax.random.normal(keys[0], shape)).astype(dtype)
  scale = 1 + jax.random.normal(keys[1], scale)
  weight = jax.random.normal(keys[2], shape).astype(dtype)
  results = []
  for each in (backend.Form.REFERENCE, form):
    with backend.using(backend.Backend(each)):
      y, pullback = jax.vjp(lambda *a: norm.norm_silu(*a, axes), x, scale)
      results.append((y, *pullback(weight)))
  tolerance = 1e-5 if dtype == jnp.float32 else 0.03
  for expected, actual in zip(*results, strict=True):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    np.testing.assert_allclose(
      np.float32(actual), np.float32(expected), rtol=tolerance, atol=tolerance
    )
