"""Traces, read as TensorBoard reads them."""

import jax
import jax.numpy as jnp
import pytest

from dreamer_tpu.metrics.profiler import Profiler


@jax.jit
def update(x):
  return jnp.tanh(x @ x)


def train(profiler, updates):
  x = jnp.eye(64)
  for number in updates:
    with profiler(number):
      x = update(x).block_until_ready()


def steps(logdir):
  """Returns the numbers of the updates in all traces below a directory."""
  found = []
  for path in logdir.glob('plugins/profile/*/*.xplane.pb'):
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
      for line in plane.lines:
        for event in line.events:
          if event.name == 'update':
            found.append(dict(event.stats)['step_num'])
  return sorted(found)


def test_a_range(tmp_path):
  logged = []
  with Profiler('3:6', tmp_path, logged.append) as profiler:
    train(profiler, range(10))
    assert len(logged) == 1
  assert steps(tmp_path) == [3, 4, 5]
  assert logged == [f'Wrote the trace to {tmp_path}/plugins/profile.']


def test_a_run_that_ends_within_it(tmp_path):
  with Profiler('1:100', tmp_path, print) as profiler:
    train(profiler, range(4))
  assert steps(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize('updates', ['', '3:6'])
def test_none(tmp_path, updates):
  with Profiler(updates, tmp_path, print) as profiler:
    train(profiler, range(6, 9))
  assert not list(tmp_path.rglob('*'))
