"""`product` against its reference form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_tpu.agent.ops import backend, matmul


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
  """Cuts rows into parts of at least 100."""
  monkeypatch.setattr(matmul, '_MIN_ROWS', 100)


def results(form, x, kernel, d_y):
  """Product, and gradients of both inputs, in a form."""
  with backend.using(backend.Backend(form)):
    run = jax.jit(lambda *args: jax.vjp(matmul.product, *args[:2]))
    y, pullback = run(x, kernel)
    return y, *pullback(d_y)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('form', [backend.Form.ACCELERATOR, backend.Form.CPU])
@pytest.mark.parametrize(('inputs', 'outputs'), [(4, 9), (9, 4)])
@pytest.mark.parametrize(
  'rows', [(6, 64), (6, 8, 8), (6, 32), (7, 64), (384,), (100,), ()], ids=str
)
def test_values_and_gradients(rows, inputs, outputs, form, dtype):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (*rows, inputs)).astype(dtype)
  kernel = jax.random.normal(keys[1], (inputs, outputs)).astype(dtype)
  d_y = jax.random.normal(keys[2], (*rows, outputs)).astype(dtype)
  expected = results(backend.Form.REFERENCE, x, kernel, d_y)
  # Sums of up to 448 rows, rounded once.
  atol = 2e-4 if dtype == jnp.float32 else 0.3
  for a, b in zip(expected, results(form, x, kernel, d_y), strict=True):
    assert a.dtype == b.dtype == dtype
    np.testing.assert_allclose(
      np.float32(b), np.float32(a), rtol=2**-7, atol=atol
    )


def test_blocks():
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], (5, 6))
  kernel = jax.random.normal(keys[1], (2, 3, 4))
  y = matmul.from_blocks(matmul.product(matmul.to_blocks(x, 2), kernel))
  expected = [x[:, :3] @ kernel[0], x[:, 3:] @ kernel[1]]
  np.testing.assert_allclose(y, np.concatenate(expected, -1), rtol=1e-5)


def test_a_gradient_in_parts_is_rounded_once():
  keys = jax.random.split(jax.random.key(0))
  x, d_y = (
    jax.random.normal(k, (64, 64, n)).astype(jnp.bfloat16)
    for k, n in zip(keys, (4, 9), strict=True)
  )
  kernel = jnp.ones((4, 9), jnp.bfloat16)
  _, _, found = results(backend.Form.CPU, x, kernel, d_y)
  expected = np.einsum('tni,tno->io', *(np.float64(y) for y in (x, d_y)))
  np.testing.assert_allclose(np.float64(found), expected, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize('shape', [(4, 9), (9, 4)], ids=str)
def test_gradients_on_cpu_need_little_memory(shape):
  """At most what the narrower input takes, and a kernel per part."""
  inputs, outputs = shape
  x, d_y = jnp.ones((6, 64, inputs)), jnp.ones((6, 64, outputs))
  with backend.using(backend.Backend(backend.Form.CPU)):
    compiled = jax.jit(matmul.kernel_gradient).lower(x, d_y).compile()
  budget = min(x.nbytes, d_y.nbytes) + 4 * 4 * inputs * outputs
  assert compiled.memory_analysis().temp_size_in_bytes <= budget
