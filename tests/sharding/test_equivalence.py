"""Tests that every mesh of eight devices computes what a single device does.

From one state in float32: losses, gradients, parameters, report and policy.
"""

import jax
import numpy as np
import pytest

from dreamer_tpu.learner.acting import PolicyStep
from tests.helpers import small

MESHES = [(8, 1, 1), (4, 1, 2), (2, 2, 2), (1, 2, 4), (1, 8, 1), (1, 1, 8)]
TOLERANCE = 1e-4
UPDATES = 3

needs_eight = pytest.mark.skipif(
  jax.device_count() < 8, reason='needs eight devices'
)


@pytest.fixture(scope='module')
def agent():
  return small.make_agent()


@pytest.fixture(scope='module')
def start(agent):
  return small.filled_state(agent)


@pytest.fixture(scope='module')
def policy(agent):
  """One compiled policy step for all meshes: it runs on a single device."""
  return PolicyStep(agent, 2, seed=0)


class Outcome:
  """Everything that a mesh computes from a state and batches."""

  def __init__(self, agent, policy, start, shape):
    learner = small.make_learner(agent, shape, init=False)
    learner.state = jax.tree.map(jax.device_put, start, learner.shardings)
    self.states, self.results = [], []
    for seed in range(UPDATES):
      batch = learner.put(small.make_batch(agent, seed=seed))
      learner.update(batch, small.make_stepid())
      self.results.append(learner.flush())
      self.states.append(small.flat(learner.state))
    learner.state = jax.tree.map(jax.device_put, start, learner.shardings)
    batch = learner.put(small.make_batch(agent, seed=9))
    self.metrics, self.videos = learner.report([batch], 0)
    policy.params = learner.publish(jax.devices()[0])
    self.actions = act(agent, policy)

  def gradients(self):
    """Returns the clipped gradients of the first update, from its moments."""
    state = self.states[0]
    decay = 0.999
    names = [k for k in state if '/nu/' in k]
    return {
      k: np.sign(state[k.replace('1/nu', '2/ema')])
      * np.sqrt(state[k] / (1 - decay))
      for k in names
    }


def act(agent, policy):
  policy.steps = 0
  policy.reset()
  batch = small.make_batch(agent, seed=3)
  return [
    policy({k: v[:2, i] for k, v in batch.items() if v.ndim > 1})
    for i in range(3)
  ]


def largest(actual, expected) -> tuple[float, str]:
  """Returns the largest relative difference and its name."""
  differences = small.difference(actual, expected)
  return max((value, name) for name, value in differences.items())


@pytest.fixture(scope='module')
def single(agent, policy, start):
  return Outcome(agent, policy, start, (1, 1, 1))


@pytest.fixture(scope='module', params=MESHES, ids=str)
def many(request, agent, policy, start):
  return Outcome(agent, policy, start, request.param)


def compare(many, single) -> dict[str, tuple[float, str]]:
  """Returns the largest relative difference of every kind of outcome."""
  found = {}
  for i in range(UPDATES):
    for kind in ('metrics', 'latents'):
      pair = (getattr(x.results[i], kind) for x in (many, single))
      found[f'{kind} {i}'] = largest(*pair)
    for part in ('params', 'slow_value', 'retnorm'):
      pair = (
        {k: v for k, v in x.states[i].items() if k.startswith(part)}
        for x in (many, single)
      )
      found[f'{part} {i}'] = largest(*pair)
  found['gradients'] = largest(many.gradients(), single.gradients())
  found['report'] = largest(many.metrics, single.metrics)
  found['actions'] = largest(many.actions, single.actions)
  return found


@needs_eight
def test_a_mesh_computes_what_one_device_does(many, single):
  found = compare(many, single)
  assert {k: v for k, v in found.items() if v[0] > TOLERANCE} == {}
  for name, array in single.videos.items():
    if array.dtype == np.uint8:
      error = np.abs(many.videos[name].astype(int) - array)
      assert error.max() <= 1  # A pixel may round to its neighbor.
    else:
      found = small.difference(many.videos[name], array)
      assert max(found.values()) <= TOLERANCE, name


def test_nothing_is_trivially_equal(single, start):
  flat = small.flat(start['params'])
  assert all(x.any() for x in flat.values() if x.ndim > 1)
  gradients = single.gradients()
  assert len(gradients) == len(flat)
  for name, gradient in gradients.items():
    assert np.abs(gradient).max() > 1e-6, name
  for name, value in flat.items():
    assert (single.states[-1][f'params/{name}'] != value).any(), name
  losses = {k: v for k, v in single.results[0].metrics.items() if 'loss' in k}
  assert all(losses.values())
  assert np.ptp(single.videos['openloop/image']) > 0
