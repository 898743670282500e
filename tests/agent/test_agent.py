"""Whole updates: bfloat16, consecutive parts, and what the replay stores."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, presets
from dreamer_tpu.agent import Agent
from dreamer_tpu.agent.ops import backend
from tests.helpers import golden, small
from tests.helpers.jaxprs import equations, stacked


@pytest.fixture(autouse=True, scope='module')
def fast_compilation():
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.mark.parametrize('name', list(golden.OBS))
def test_bfloat16_losses_are_near_those_of_float32(name):
  numbers = golden.Golden(name)
  batch = numbers.batch()
  if 'image' in batch:
    # As they are, two classes of a posterior are within rounding of each other.
    batch['image'] = np.rot90(batch['image'], axes=(2, 3))
  losses = {}
  for dtype in (jnp.float32, jnp.bfloat16):
    agent = Agent(
      golden.OBS[name], golden.ACT[name], golden.config(), dtype=dtype
    )

    def run(state, carry, batch, agent=agent):
      inputs = agent._contextualize(carry, batch)
      _, aux = agent._loss(state['params'], state, *inputs, None)
      return aux.metrics

    metrics = jax.jit(run)(numbers.state(), numbers.carry(), batch)
    losses[dtype] = {k: float(v) for k, v in metrics.items() if 'loss/' in k}
  exact = losses[jnp.float32]
  for term, value in losses[jnp.bfloat16].items():
    # Imagination adds its roundings up, though no posterior sample differs.
    rel = 0.06 if term in ('loss/policy', 'loss/value') else 0.02
    assert value == pytest.approx(exact[term], rel=rel, abs=1e-3), term


def test_two_parts_are_one_long_sequence():
  """With a learning rate of 0 and modes instead of samples."""
  config = small.config()
  config.opt.lr = 0.0
  agent = Agent(small.VECTOR_OBS, small.ACT, config)
  state = jax.jit(agent.init)(jax.random.key(0))
  steps, context = small.STEPS, small.CONTEXT
  batch = small.make_batch(agent, steps=2 * steps)
  batch['is_first'][:, context + steps + 1] = False
  train = jax.jit(lambda *args: agent.train(*args, None))
  carry = agent.initial_carry(small.ROWS)
  _, whole_carry, whole, _ = train(state, carry, batch)
  parts = []
  for i in range(2):
    part = {
      k: v[:, i * steps : context + (i + 1) * steps]
      for k, v in batch.items()
      if v.ndim > 1
    }
    part['consec'] = np.full(small.ROWS, i, np.int32)
    if i:  # must not be looked at
      part['latent/deter'] = np.full_like(part['latent/deter'], 0.5)
    state, carry, latents, _ = train(state, carry, part)
    parts.append(latents)
  for name, expected in whole.items():
    actual = np.concatenate([p[name] for p in parts], 1)
    rtol = 1e-4 if name == 'priority' else 1e-7  # That one is a large sum.
    np.testing.assert_allclose(
      actual, expected, rtol=rtol, atol=1e-6, err_msg=name
    )
  assert small.difference(carry, whole_carry)['deter'] < 1e-5


def test_training_goes_on_where_the_policy_stood():
  """From the stored latents, the first trained `deter` is the policy's."""
  agent = small.make_agent(small.VECTOR_OBS)
  params = jax.jit(agent.init)(jax.random.key(0))
  batch = small.make_batch(agent, steps=2)
  batch['is_first'][:, 1:] = False
  policy = jax.jit(agent.policy)
  carry, stored = agent.initial_carry(small.ROWS), []
  for t in range(3):
    obs = {k: batch[k][:, t] for k in ('speed', 'is_first')}
    carry, action, latents = policy(
      params['params'], carry, obs, jax.random.key(t)
    )
    stored.append(jax.device_get({**action, **latents}))
  for name in stored[0]:
    batch[name] = np.stack([x[name] for x in stored], 1)
  train = jax.jit(agent.train)
  carry = agent.initial_carry(small.ROWS)
  _, _, latents, _ = train(params, carry, batch, jax.random.key(9))
  np.testing.assert_allclose(
    latents['latent/deter'][:, 0], stored[1]['latent/deter'], atol=1e-5
  )


def debug_agent() -> Agent:
  config = base.base()
  presets.apply(config, 'debug')
  config.agent.opt.update(lr=1e-3, warmup=10)
  return Agent(small.VECTOR_OBS, small.ACT, config.agent, dtype=jnp.bfloat16)


@pytest.mark.parametrize(
  'updates', [50, pytest.param(2000, marks=pytest.mark.slow)]
)
def test_bfloat16_stays_finite(updates):
  agent = debug_agent()
  state = jax.jit(agent.init)(jax.random.key(0))
  train = jax.jit(agent.train, donate_argnums=0)
  carry = agent.initial_carry(small.ROWS)
  losses = []
  for i in range(updates):
    batch = small.make_batch(agent, seed=i % 4)
    state, _, _, metrics = train(state, carry, batch, jax.random.key(i))
    losses.append(float(metrics['loss/total']))
    assert int(metrics['opt/nonfinite']) == -1, i
  assert np.isfinite(losses).all()
  assert int(state['skipped']) == 0
  assert np.mean(losses[-5:]) < np.mean(losses[:5])
  assert all(np.isfinite(x).all() for x in small.flat(state).values())


def test_rows_one_after_another_learn_the_same():
  outcomes = []
  for form in backend.Form:
    agent = small.make_agent()
    state = jax.jit(agent.init)(jax.random.key(0))
    inputs = agent._contextualize(
      agent.initial_carry(small.ROWS), small.make_batch(agent)
    )

    def loss(params, agent=agent, state=state, inputs=inputs):
      value, aux = agent._loss(params, state, *inputs, jax.random.key(1))
      return value, aux.terms

    with backend.using(backend.Backend(form)):
      compiled = jax.jit(jax.grad(loss, has_aux=True))
      outcomes.append(compiled(state['params']))
  differences = small.difference(outcomes[1][0], outcomes[0][0])
  assert max(differences.values()) < 1e-5
  for name, term in outcomes[0][1].items():
    np.testing.assert_allclose(outcomes[1][1][name], term, rtol=1e-5, atol=1e-6)


def test_rematerialization_keeps_less_and_changes_nothing():
  outcomes, kept = [], []
  for remat in (False, True):
    config = small.config()
    config.remat = remat
    agent = Agent(small.OBS, small.ACT, config)
    state = jax.jit(agent.init)(jax.random.key(0))
    batch = small.make_batch(agent)
    start = agent._contextualize(agent.initial_carry(small.ROWS), batch)

    def loss(params, agent=agent, state=state, start=start):
      return agent._loss(params, state, *start, jax.random.key(1))[0]

    backward = jax.eval_shape(lambda x: jax.vjp(loss, x)[1], state['params'])
    kept.append(sum(x.size for x in jax.tree.leaves(backward)))
    outcomes.append(jax.jit(jax.grad(loss))(state['params']))
  assert kept[1] < 0.7 * kept[0]
  differences = small.difference(*reversed(outcomes))
  assert max(differences.values()) < 1e-5


def test_imagination_saves_only_inputs_of_the_losses():
  """At most features, actions and results of the policy's linear layers."""
  agent = small.make_agent()
  _, loop, _ = _loops(agent)
  horizon, starts = agent.config.imag_length, small.ROWS * small.STEPS
  rssm, policy = agent.config.rssm, agent.config.policy
  actions = sum(math.prod(x.shape) for x in agent.act_space.values())
  outputs = sum(
    x.size if x.classes else 2 * x.size for x in agent.act_space.values()
  )
  budget = rssm.deter + rssm.stoch * rssm.classes + actions
  budget += policy.layers * policy.units + outputs
  saved = sum(map(math.prod, stacked(loop)))
  assert saved <= horizon * starts * budget


def test_imagination_casts_no_kernels_and_draws_no_noise_in_its_loop():
  agent = small.make_agent(dtype=jnp.bfloat16)
  _, loop, _ = _loops(agent)
  body = list(equations(loop.params['jaxpr'].jaxpr))
  random = [x for x in body if x.primitive.name.startswith('random')]
  assert len(random) <= 0
  casts = [x for x in body if x.primitive.name == 'convert_element_type']
  rows = small.ROWS * small.STEPS
  shapes = [x.invars[0].aval.shape for x in casts]
  kernels = [x for x in shapes if len(x) > 1 and rows not in x]
  assert len(kernels) <= 0


def test_the_observation_loop_carries_no_kernel_gradients():
  """Backward, at most the state and the gradients of biases and scales."""
  agent = small.make_agent()
  _, _, backward = _loops(agent)
  rssm, params = agent.config.rssm, agent.variables['rssm']
  vectors = [x.size for x in jax.tree.leaves(params) if x.ndim < 2]
  budget = small.ROWS * (rssm.deter + rssm.stoch * rssm.classes) + sum(vectors)
  carry = backward.outvars[: backward.params['num_carry']]
  assert sum(var.aval.size for var in carry) <= budget


def _loops(agent):
  """The loops of an update: observation, imagination, observation backward."""
  state = jax.eval_shape(agent.init, jax.random.key(0))
  carry = jax.eval_shape(lambda: agent.initial_carry(small.ROWS))
  batch = small.make_batch(agent)
  update = jax.make_jaxpr(agent.train)(state, carry, batch, jax.random.key(0))
  loops = [x for x in equations(update.jaxpr) if x.primitive.name == 'scan']
  return [loop for loop in loops if stacked(loop)]
