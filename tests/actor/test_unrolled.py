"""Many steps in one program, against one step at a time."""

import jax
import numpy as np
import pytest

import dreamer_tpu.envs
from configs.base import base
from dreamer_tpu.actor.actor import Actor
from dreamer_tpu.actor.unrolled import UnrolledActor
from dreamer_tpu.agent import Agent
from dreamer_tpu.envs import functional
from dreamer_tpu.envs.restarting import Restarts
from dreamer_tpu.errors import UserError
from dreamer_tpu.learner.acting import PolicyStep
from dreamer_tpu.run import parts
from tests.helpers import functional_env, small

ENVS, SEED = 3, 7


class Broken(functional_env.Walk):
  """Its place is not finite after its second step."""

  def step(self, state, action, key):
    state, obs, *rest = super().step(state, action, key)
    place = jax.numpy.where(state['time'] > 1, np.nan, obs['place'])
    return state, {**obs, 'place': place}, *rest


dreamer_tpu.envs.register('unrolled', functional_env.make, functional=True)
dreamer_tpu.envs.register('broken', Broken, functional=True)


@pytest.fixture(scope='module')
def config():
  env = base().env
  env.unlock()
  env['keys'] = 'place|choice'
  env.unrolled = dict(length=9)
  return env


@pytest.fixture(scope='module')
def agent(config):
  spaces = dreamer_tpu.envs.spaces('unrolled_walk', config)
  return Agent(*map(parts.agent_spaces, spaces), small.config())


@pytest.fixture(scope='module')
def weights(agent):
  init = jax.jit(agent.init)
  params = [init(jax.random.key(seed))['params'] for seed in (0, 1)]
  return jax.device_put(params, jax.devices()[0])


def make_policy(agent, params):
  policy = PolicyStep(agent, ENVS, seed=1)
  policy.params = params
  return policy


def make(config, policy, length, task='unrolled_walk'):
  env = dreamer_tpu.envs.make_functional(task, ENVS, config)
  restarts = Restarts(task, ENVS, 3)
  keys = functional.keys(SEED, ENVS)
  return UnrolledActor(env, policy, keys, length, restarts)


def merge(steps, join):
  return {k: join([x[k] for x in steps]) for k in steps[0]}


def check_same(given, expected):
  assert given.keys() == expected.keys()
  for key, value in expected.items():
    assert given[key].dtype == value.dtype, key
    np.testing.assert_allclose(
      given[key].astype(np.float64), value.astype(np.float64), 1e-4, 1e-4, key
    )


@pytest.mark.parametrize('length', [1, 6])
def test_steps_and_episodes_are_those_of_the_step_wise_actor(
  config, agent, weights, length
):
  steps, stored, unrolled = 24, [], []
  policy = make_policy(agent, weights[0])
  actor = make(config, policy, length)
  episodes = []
  for i in range(steps // length):
    new = actor.step(unrolled.append)
    now = (i + 1) * length * ENVS
    episodes += [(now - x.pop('ago'), x) for x in new]
  assert policy.steps == steps

  env = dreamer_tpu.envs.make_vector('unrolled_walk', ENVS, SEED, config)
  actor = Actor(env, make_policy(agent, weights[0]))
  expected = []
  for i in range(steps):
    expected += [((i + 1) * ENVS, x) for x in actor.step(stored.append)]
  env.close()
  check_same(merge(unrolled, np.concatenate), merge(stored, np.stack))
  # Several episodes end in the middle of a program, by both kinds of end.
  assert len(expected) > ENVS
  ends = merge(stored, np.stack)
  assert (ends['is_last'] & ~ends['is_terminal']).any()
  assert [step for step, _ in episodes] == [step for step, _ in expected]
  for (_, one), (_, two) in zip(episodes, expected, strict=True):
    assert one['env'] == two['env']
    assert one['stats'] == pytest.approx(two['stats'], abs=1e-4)


def test_weights_are_those_before_the_steps(config, agent, weights):
  def run(second):
    policy = make_policy(agent, weights[0])
    actor, stored, versions = make(config, policy, 2), [], []
    for i in range(4):
      if i == 1:
        policy.params, policy.version = weights[second], 5
      actor.step(stored.append)
      versions.append(actor.version)
    return [x['latent/deter'] for x in stored], versions

  (same, _), (other, versions) = run(0), run(1)
  # The second two steps began with the first ones, before there were new
  # weights.
  equal = [np.array_equal(*pair) for pair in zip(same, other, strict=True)]
  assert equal == [True, True, False, False]
  assert versions == [0, 5, 5, 5]


def test_environments_are_restarted_so_often(config, agent, weights, caplog):
  policy = make_policy(agent, weights[0])
  actor, stored = make(config, policy, 4, 'broken_walk'), []
  actor.step(stored.append)
  assert stored[0]['is_first'].all(1).tolist() == [True, False, True, False]
  assert np.isfinite(stored[0]['place']).all()
  assert f'{ENVS * 2} restarts' in f'{actor._env.restarts} restarts'
  text = 'environment 2: an observation or a reward is not finite; restart 2'
  assert text in caplog.text
  with pytest.raises(UserError, match='restarts=3 without an episode'):
    actor.step(stored.append)
  assert len(stored) == 1
