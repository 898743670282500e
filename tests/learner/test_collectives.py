"""What chips say to one another in an update, from the compiled program."""

import jax
import pytest

from dreamer_tpu.tools.plan_hlo import Program
from tests.learner import small

pytestmark = pytest.mark.skipif(
  jax.device_count() < 8, reason='needs eight devices'
)


def collectives(agent, shape):
  steps = small.make_learner(agent, shape, init=False).steps
  arguments = steps.train_arguments(small.STEPS)
  text = steps.train.lower(*arguments).compile().as_text()
  return Program(text).collectives()


@pytest.fixture(scope='module')
def agent():
  return small.make_agent()


@pytest.fixture(scope='module')
def data_parallel(agent):
  return collectives(agent, (8, 1, 1))


def test_gradients_are_summed_once(agent, data_parallel):
  params = jax.tree.leaves(agent.variables)
  gradients = sum(x.size * x.dtype.itemsize for x in params)
  sums = [x for x in data_parallel if x.kind == 'all-reduce']
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


def test_a_step_of_the_model_parallel_scan_sums_three_times(agent):
  """Dense inputs, the norm of the blocks, the posterior; so does its way back.

  Each needs the one before, so that fewer are impossible.
  """
  found = collectives(agent, (2, 1, 4))
  steps = [x for x in found if x.times == small.STEPS]
  assert {(x.kind, x.group) for x in steps} == {('all-reduce', 4)}
  assert len(steps) == 6
  rssm, rows = agent.config.rssm, small.ROWS // 2
  hidden, scalar = 4 * rows * rssm.hidden, 4 * rows
  # The way back computes the norms anew.
  expected = 2 * (2 * hidden) + 2 * hidden + scalar + 2 * scalar
  assert sum(x.size for x in steps) == expected
