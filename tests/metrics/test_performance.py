"""Speed of updates: by hand, and against the clock."""

import time

import jax
import jax.numpy as jnp
import pytest

from dreamer_tpu.metrics.performance import Performance


def products(x):
  return jnp.tanh(x @ x) @ x


def test_share_of_the_peak():
  performance = Performance()
  x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)
  performance.count(jax.make_jaxpr(products)(x), 'TPU v4', 8)
  stats = performance.stats(1e-6)
  matmul = 2 * 2 * 256**3
  assert stats['perf/flops_per_update'] == matmul + 256**2
  assert stats['perf/mfu'] == pytest.approx(matmul / 1e-6 / (8 * 275e12))
  assert stats['perf/update_ms'] == pytest.approx(1e-3)


def test_what_is_not_known_is_absent():
  performance = Performance()
  assert set(performance.stats(None)) == {'perf/compile_s'}
  performance.count(jax.make_jaxpr(products)(jnp.ones((2, 2))), 'cpu', 8)
  assert 'perf/mfu' not in performance.stats(1.0)
  assert 'perf/update_ms' not in performance.stats(None)


def test_compile_seconds():
  performance = Performance()

  salt = time.time()  # Nothing like it has been compiled before.

  def fn(x):
    for _ in range(200):
      x = jnp.sin(salt * x) @ x
    return x

  before = performance.stats(None)['perf/compile_s']
  begin = time.perf_counter()
  compiled = jax.jit(fn).lower(jnp.ones((8, 8))).compile()
  wall = time.perf_counter() - begin
  seconds = performance.stats(None)['perf/compile_s'] - before
  assert 0.3 * wall < seconds <= wall
  compiled(jnp.ones((8, 8)))
  assert performance.stats(None)['perf/compile_s'] == before + seconds
