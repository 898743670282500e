"""Collectives of a compiled update."""

import math

import jax
import pytest

from dreamer_tpu.tools.plan.hlo import Program
from tests.helpers import small

pytestmark = pytest.mark.skipif(
  jax.device_count() < 8, reason='needs eight devices'
)


def compile_update(agent, shape):
  """The arguments of an update, and the compiled program."""
  steps = small.make_learner(agent, shape, init=False).steps
  arguments = steps.train_arguments(small.STEPS)
  return arguments, steps.train.lower(*arguments).compile()


@pytest.fixture(scope='module')
def agent():
  return small.make_agent()


@pytest.fixture(scope='module')
def data_parallel(agent):
  return Program(compile_update(agent, (8, 1, 1))[1].as_text()).collectives()


@pytest.fixture(scope='module')
def model_parallel(agent):
  return compile_update(agent, (2, 1, 4))


def test_gradients_are_summed_once():
  """Without images: kernels are summed as convolutions take them, spread out.

  Those are 1% of the parameters of a model, but not of this small one.
  """
  agent = small.make_agent(small.VECTOR_OBS)
  params = jax.tree.leaves(agent.variables)
  gradients = sum(x.size * x.dtype.itemsize for x in params)
  found = Program(compile_update(agent, (8, 1, 1))[1].as_text()).collectives()
  sums = [x for x in found if x.kind == 'all-reduce']
  total = sum(x.size * x.times for x in sums)
  assert gradients <= total <= 1.05 * gradients
  assert {x.group for x in sums} == {8}


def test_only_returns_are_gathered(agent, data_parallel):
  """The percentiles are of the whole batch."""
  (gather,) = [x for x in data_parallel if x.kind != 'all-reduce']
  starts = small.ROWS * small.STEPS
  assert gather.kind == 'all-gather'
  assert gather.size == 4 * agent.config.imag_length * starts


def test_no_collective_in_a_scan(data_parallel):
  assert [x for x in data_parallel if x.loop] == []


def test_a_step_of_the_model_parallel_scan_sums_three_times(
  agent, model_parallel
):
  """Dense inputs, the norm of the blocks, the posterior; so does its way back.

  Each needs the one before, so that fewer are impossible.
  """
  found = Program(model_parallel[1].as_text()).collectives()
  steps = [x for x in found if x.times == small.STEPS]
  assert {(x.kind, x.group) for x in steps} == {('all-reduce', 4)}
  assert len(steps) <= 6
  rssm, rows = agent.config.rssm, small.ROWS // 2
  hidden, scalar = 4 * rows * rssm.hidden, 4 * rows
  # One scalar per row and pass: the backward pass reuses the inverse RMS.
  budget = 2 * (2 * hidden) + 2 * hidden + 2 * scalar
  assert sum(x.size for x in steps) <= budget


def test_imagined_states_stay_where_they_are(agent, model_parallel):
  """Results of products are sent, a fraction of their inputs."""
  found = Program(model_parallel[1].as_text()).collectives()
  config = agent.config
  gathers = [
    x.size
    for x in found
    if x.times == config.imag_length and x.kind == 'all-gather'
  ]
  starts = small.ROWS // 2 * small.STEPS
  assert max(gathers) == 4 * starts * config.rssm.hidden
  assert config.rssm.hidden < config.rssm.deter


def test_shards_are_donated_and_stay_where_they_are(model_parallel):
  arguments, compiled = model_parallel
  kept = jax.tree.leaves(arguments[:2])  # state and carry
  shards = [x.sharding.shard_shape(x.shape) for x in kept]
  size = sum(
    math.prod(shape) * x.dtype.itemsize
    for shape, x in zip(shards, kept, strict=True)
  )
  assert compiled.memory_analysis().alias_size_in_bytes == size
  into = jax.tree.leaves(compiled.input_shardings[0][:2])
  out = jax.tree.leaves(compiled.output_shardings[:2])
  for x, a, b in zip(kept, into, out, strict=True):
    assert a.is_equivalent_to(b, x.ndim)
    assert a.is_equivalent_to(x.sharding, x.ndim)
