"""The policy step: randomness, resets, modes, and where the carry lives."""

import jax
import numpy as np
import pytest

from dreamer_tpu.learner.acting import PolicyStep
from tests.helpers import small
from tests.helpers.compilations import compilations

ENVS = 4


@pytest.fixture(scope='module')
def agent():
  return small.make_agent(small.VECTOR_OBS)


@pytest.fixture(scope='module')
def params(agent):
  params = jax.jit(agent.init)(jax.random.key(0))['params']
  used = {k: params[k] for k in ('encoder', 'rssm', 'policy')}
  return jax.device_put(used, jax.devices()[0])


def make(agent, params, *, seed=0, mode='sample'):
  policy = PolicyStep(agent, ENVS, seed=seed, mode=mode)
  policy.params = params
  return policy


def observe(seed, first=False):
  rng = np.random.default_rng(seed)
  return {
    'speed': rng.normal(size=(ENVS, 3)).astype(np.float32),
    'is_first': np.broadcast_to(first, (ENVS,)).copy(),
    'reward': np.zeros(ENVS, np.float32),
    'log/health': np.ones(ENVS, np.float32),
  }


def run(policy, seeds):
  outs = [policy(observe(s, first=i == 0)) for i, s in enumerate(seeds)]
  return outs[-1]


def test_actions_and_latents_fit_the_spaces(agent, params):
  action, latents = run(make(agent, params), [0])
  assert action['move'].shape == (ENVS, 2)
  assert action['move'].dtype == np.float32
  assert action['tool'].shape == (ENVS,)
  assert action['tool'].dtype == np.int32
  assert latents['latent/deter'].shape == (ENVS, 64)
  assert latents['latent/stoch'].shape == (ENVS, 8)
  assert latents['latent/stoch'].dtype == np.uint8
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(action))


def test_same_observation_and_count_same_action(agent, params):
  first = run(make(agent, params), [0, 1, 2])
  again = run(make(agent, params), [0, 1, 2])
  jax.tree.map(np.testing.assert_array_equal, first, again)


def test_count_and_seed_change_the_action(agent, params):
  action, _ = run(make(agent, params), [0])
  later = make(agent, params)
  later.steps = 5
  assert (run(later, [0])[0]['move'] != action['move']).any()
  other = run(make(agent, params, seed=1), [0])
  assert (other[0]['move'] != action['move']).any()


def test_the_past_matters_until_a_reset(agent, params):
  def last(past, reset):
    policy = make(agent, params)
    run(policy, range(past, past + 5))
    obs = observe(9)
    obs['is_first'][:2] = reset
    return policy(obs)[1]['latent/deter']

  apart = last(10, reset=False) != last(20, reset=False)
  assert apart.any(1).all()
  apart = last(10, reset=True) != last(20, reset=True)
  assert not apart[:2].any()
  assert apart[2:].any(1).all()


def test_reset_forgets_everything(agent, params):
  policy = make(agent, params)
  run(policy, [0, 1])
  policy.reset()
  policy.steps = 0
  again = run(policy, [3])
  fresh = run(make(agent, params), [3])
  jax.tree.map(np.testing.assert_array_equal, again, fresh)


def test_mode_takes_the_mode_of_the_policy(agent, params):
  action, latents = run(make(agent, params, mode='mode'), [0])
  model = agent._model(params)
  classes = agent.config.rssm.classes
  stoch = np.eye(classes, dtype=np.float32)[latents['latent/stoch']]
  feat = latents['latent/deter'], stoch.reshape(ENVS, -1)
  dists = model.policy(feat).dists
  np.testing.assert_allclose(action['move'], dists['move'].mean, atol=1e-5)
  expected = np.argmax(dists['tool'].logp, -1)
  np.testing.assert_array_equal(action['tool'], expected)
  sampled, _ = run(make(agent, params), [0])
  assert (np.abs(sampled['move'] - action['move']) > 1e-3).any()


def test_random_actions_are_uniform_and_latents_follow_them(agent, params):
  policy = make(agent, params, mode='random')
  actions, latents = [], []
  for seed in range(500):
    action, latent = policy(observe(seed % 2, first=not seed))
    actions.append(action)
    latents.append(latent)
  move, tool = (np.stack([x[k] for x in actions]) for k in ('move', 'tool'))
  assert np.abs(move).max() <= 1
  for values, edges in (
    (move, np.linspace(-1, 1, 5)),
    (tool, np.arange(5) - 0.5),
  ):
    counts, _ = np.histogram(values, edges)
    assert counts.sum() == values.size
    # A tenth is over three standard deviations of such a count.
    np.testing.assert_allclose(counts, values.size / 4, rtol=0.12)
  assert abs(np.corrcoef(move[:, 0].T)[0, 1]) < 0.15
  # The world model, given these actions, comes to the same states.
  count = 5
  states = agent.initial_carry(ENVS)
  for seed in range(count):
    key = jax.random.fold_in(jax.random.key(0), seed)
    key, _ = jax.random.split(key)
    obs = observe(seed % 2, first=not seed)
    seen = {k: obs[k] for k in policy._keys}
    states, _, expected = agent.policy(params, states, seen, key)
    states = {**states, 'action': actions[seed]}
    for name, value in expected.items():
      np.testing.assert_allclose(latents[seed][name], value, atol=1e-5)


def test_carry_stays_on_the_device_and_compiles_once(agent, params):
  policy = make(agent, params)
  run(policy, [0, 1])
  carry = jax.tree.leaves(policy._carry)
  with compilations() as seen, jax.transfer_guard('disallow'):
    for seed in range(3):
      policy(observe(seed))
  assert not seen
  assert all(x.is_deleted() for x in carry)
  carry = jax.tree.leaves(policy._carry)
  assert {d for x in carry for d in x.devices()} == {jax.devices()[0]}


def test_all_policies_share_one_compilation_whatever_the_seed(agent, params):
  """A new seed costs no compilation that the cache on disk would not know."""
  texts = []
  for seed in (0, 1):
    policy = make(agent, params, seed=seed)
    obs = {k: observe(0)[k] for k in policy._keys}
    args = (params, policy._carry, obs, np.uint32(0), policy.seed)
    texts.append(policy._step.lower(*args).as_text())
  assert texts[0] == texts[1]
