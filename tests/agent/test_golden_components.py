"""Tests each part against the public implementation's numbers."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from dreamer_tpu.agent import distributions, normalizer, optimizer, returns
from tests.helpers.golden import FOLDER, error


@pytest.fixture(scope='module')
def arrays() -> dict[str, np.ndarray]:
  with np.load(FOLDER / 'components.npz') as file:
    return dict(file)


def group(arrays, name):
  start = name + '/'
  return {k[len(start) :]: v for k, v in arrays.items() if k.startswith(start)}


@pytest.mark.parametrize('name', ['symlog', 'symexp'])
def test_symlog_and_symexp(arrays, name):
  g = group(arrays, name)
  assert error(getattr(distributions, name)(g['x']), g['y']) < 1


def test_categorical(arrays):
  g = group(arrays, 'categorical')
  unimix = float(g['unimix'])
  dist = distributions.Categorical.create(g['logits'], unimix)
  other = distributions.Categorical.create(g['other_logits'], unimix)
  assert error(dist.logp, g['mixed_logits']) < 1
  assert error(dist.entropy(), g['entropy']) < 1
  assert error(dist.kl(other), g['kl']) < 1
  assert error(dist.log_prob(g['event']), g['logp']) < 1


def test_straight_through(arrays):
  g, c = group(arrays, 'straight_through'), group(arrays, 'categorical')

  def weighted(logits):
    dist = distributions.Categorical.create(logits, float(c['unimix']))
    return (dist.straight_through(dist.mode()) * g['weight']).sum()

  assert error(jax.grad(weighted)(c['logits']), g['grad_of_mode']) < 1


def test_twohot(arrays):
  g = group(arrays, 'twohot')
  assert error(distributions.twohot_bins(255), g['bins']) < 1
  dist = distributions.TwoHot(logits=g['logits'])
  assert error(dist.mean(), g['pred']) < 1
  assert error(dist.loss(g['target']), g['loss']) < 1
  grad = jax.grad(
    lambda x: distributions.TwoHot(logits=x).loss(g['target']).sum()
  )(g['logits'])
  assert error(grad, g['grad']) < 1
  zero = distributions.TwoHot(logits=jnp.zeros((3, 255)))
  np.testing.assert_array_equal(zero.mean(), g['pred_of_zero_logits'])


def test_bounded_normal(arrays):
  g = group(arrays, 'bounded_normal')
  dist = distributions.BoundedNormal.create(
    g['mean_raw'], g['std_raw'], float(g['minstd']), float(g['maxstd'])
  )
  assert error(dist.log_prob(g['event']), g['logp']) < 1
  assert error(dist.entropy(), g['entropy']) < 1


def test_bernoulli(arrays):
  g = group(arrays, 'binary')
  dist = distributions.Bernoulli(logit=g['logit'])
  assert error(dist.loss(g['target']), g['loss']) < 1
  assert error(dist.prob(), g['prob_of_one']) < 1


def test_lambda_return(arrays):
  g = group(arrays, 'lambda_return')
  actual = returns.lambda_return(
    g['last'], g['term'], g['rew'], g['boot'], float(g['disc']), float(g['lam'])
  )
  assert error(actual, g['ret']) < 1


def test_percentile_normalizer(arrays):
  g = group(arrays, 'percentile_normalizer')
  state = normalizer.init()
  for x, (offset, scale) in zip(g['x'], g['offset_scale'], strict=True):
    state = normalizer.update(
      state, x, rate=float(g['rate']), low=5.0, high=95.0
    )
    assert error(state['low'], offset) < 1
    assert error(normalizer.scale(state, float(g['limit'])), scale) < 1


def test_optimizer(arrays):
  g = group(arrays, 'optimizer')
  config = ml_collections.ConfigDict(
    dict(
      lr=4e-5,
      agc=0.3,
      beta2=0.999,
      eps=1e-20,
      momentum=0.9,
      warmup=3,
      schedule='constant',
      decay_steps=0,
      weight_decay=0.0,
    )
  )
  transform = optimizer.make(config)
  params = group(g, 'params')
  state = transform.init(params)
  for step in range(1, 7):
    updates, state = transform.update(
      group(g, f'step{step}/grads'), state, params
    )
    params = optax.apply_updates(params, updates)
    for name, expected in group(g, f'step{step}/updates').items():
      # Updates are far below the absolute tolerance: relative to their size.
      scale = np.abs(expected).max() or 1.0
      assert error(updates[name] / scale, expected / scale) < 1, (step, name)
    for name, expected in group(g, f'step{step}/params').items():
      assert error(params[name], expected) < 1, (step, name)
