"""Speed of updates, counted by hand."""

import collections

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


def test_unknown_metrics_are_absent():
  performance = Performance()
  assert set(performance.stats(None)) == {'perf/compile_s'}
  performance.count(jax.make_jaxpr(products)(jnp.ones((2, 2))), 'cpu', 8)
  assert 'perf/mfu' not in performance.stats(1.0)
  assert 'perf/update_ms' not in performance.stats(None)


def test_compile_seconds():
  performance = Performance()
  seconds = lambda: performance.stats(None)['perf/compile_s']
  x = jnp.ones((8, 8))
  events = collections.Counter()  # Seconds by name.

  def listen(event, duration_secs, **_):
    events[event] += duration_secs

  jax.monitoring.register_event_duration_secs_listener(listen)
  before = seconds()
  compiled = jax.jit(lambda x: jnp.sin(x) @ x).lower(x).compile()
  names = 'jaxpr_to_mlir_module', 'backend_compile'
  parts = [events[f'/jax/core/compile/{name}_duration'] for name in names]
  assert min(parts) > 0
  assert seconds() - before == pytest.approx(sum(parts))
  now = seconds()
  compiled(x)
  assert seconds() == now
