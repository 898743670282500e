"""Tests of the sharding of the state and of conversions of arrays."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dreamer_tpu.sharding import arrays, rules
from tests.helpers import small

pytestmark = pytest.mark.skipif(
  jax.device_count() < 8, reason='needs eight devices'
)


@pytest.fixture(scope='module')
def agent():
  return small.make_agent()


@pytest.fixture(scope='module')
def states(agent):
  shapes = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]
  return {s: small.make_learner(agent, s).state for s in shapes}


def on_one_device(tree) -> int:
  """Returns the bytes on the first device."""
  return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def test_bytes_per_device_shrink(states):
  total = sum(x.nbytes for x in jax.tree.leaves(states[1, 1, 1]))
  share = {s: on_one_device(x) / total for s, x in states.items()}
  assert share[1, 1, 1] == share[8, 1, 1] == 1
  assert share[1, 8, 1] < 0.75
  assert share[1, 1, 8] < 0.5
  assert share[2, 2, 2] < 0.6
  blocks = states[1, 1, 8]['params']['rssm']
  for name in ('gru', 'hidden0'):
    kernel = blocks[name]['kernel']
    assert on_one_device(kernel) * 8 == kernel.nbytes


def test_initial_state_does_not_depend_on_the_mesh(states):
  expected = small.flat(states[1, 1, 1])
  for shape, state in states.items():
    for name, value in small.flat(state).items():
      np.testing.assert_array_equal(value, expected[name], err_msg=str(shape))


def test_moments_and_slow_value_follow_their_parameters(states):
  for state in states.values():
    specs = {
      name: x.sharding.spec for name, x in small.leaves(state).items() if x.ndim
    }
    params = {k: v for k, v in specs.items() if k.startswith('params/')}
    assert len(specs) > 3 * len(params)
    for name, spec in params.items():
      _, inside = name.split('/', 1)
      same = [k for k in specs if k.endswith('/' + inside)]
      if inside.startswith('value/'):
        same.append('slow_' + inside)
        assert len(same) == 4
      else:
        assert len(same) == 3, same
      assert {specs[k] for k in same} == {spec}


def test_random_numbers_do_not_depend_on_the_mesh():
  def draw(key):
    return jax.random.normal(key, (8, 32)), jax.random.uniform(key, (64, 8))

  key = jax.random.key(3)
  expected = jax.jit(draw)(key)
  mesh = small.make_mesh((2, 2, 2))
  for spec in (('data', 'model'), (('data', 'fsdp'), 'model'), ('model',)):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    actual = jax.jit(draw, out_shardings=sharding)(key)
    for x, y in zip(actual, expected, strict=True):
      np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_rows_round_trip_through_devices(shape):
  sharding = rules.batch(small.make_mesh(shape))
  rows = {'a': np.arange(48).reshape(8, 6), 'b': np.arange(8) > 3}
  there = arrays.to_global(sharding, rows)
  shards = shape[0] * shape[1]
  for x in there.values():
    assert x.addressable_shards[0].data.shape[0] == 8 // shards
  back = arrays.to_local(there)
  for name, value in rows.items():
    assert isinstance(back[name], np.ndarray)
    np.testing.assert_array_equal(back[name], value)


@pytest.mark.parametrize('shape', [(1, 8, 1), (2, 2, 2)])
def test_gradients_of_gathered_weights_are_sharded(shape):
  mesh = small.make_mesh(shape)
  sharding = NamedSharding(mesh, PartitionSpec('fsdp', 'model'))
  kernel = np.arange(128, dtype=np.float32).reshape(16, 8)

  def loss(tree):
    whole = rules.gather(tree, {'w': sharding}, kernel.dtype)['w']
    return (whole**2).sum()

  grad = jax.jit(jax.grad(loss))({'w': jax.device_put(kernel, sharding)})['w']
  assert grad.sharding.is_equivalent_to(sharding, 2)
  np.testing.assert_allclose(grad, 2 * kernel)
