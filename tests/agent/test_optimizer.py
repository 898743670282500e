"""Tests schedules, clipping and weight decay against their formulas."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_tpu.agent import optimizer
from tests.helpers import golden

LR = 1e-2


def config(**kw):
  opt = golden.config().opt
  opt.update(dict(lr=LR, warmup=10, schedule='constant', decay_steps=50))
  opt.update(kw)
  return opt


def after_warmup(name: str, done: float) -> float:
  return {
    'constant': 1.0,
    'linear': 1 - done,
    'cosine': 0.5 * (1 + math.cos(math.pi * done)),
  }[name]


@pytest.mark.parametrize('schedule', ['constant', 'linear', 'cosine'])
@pytest.mark.parametrize('warmup', [0, 10])
def test_schedule(schedule, warmup):
  rate = optimizer.learning_rate(config(schedule=schedule, warmup=warmup))
  for step in range(70):
    if step < warmup:
      expected = LR * step / warmup
    else:
      done = min(1.0, (step - warmup) / (50 - warmup))
      expected = LR * after_warmup(schedule, done)
    assert float(rate(step)) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_clipping_takes_the_norm_of_whole_tensors():
  rng = np.random.default_rng(0)
  params = {
    'large': 10 * rng.normal(size=(4, 5)),
    'small': 1e-6 * rng.normal(size=(3,)),
    'calm': rng.normal(size=(2, 3, 4)),
  }
  grads = {k: rng.normal(size=v.shape) for k, v in params.items()}
  grads['large'] *= 1e3
  grads['calm'] *= 1e-3
  as_jax = lambda tree: {k: jnp.array(v, jnp.float32) for k, v in tree.items()}
  transform = optimizer.clip_by_tensor(0.3)
  clipped, _ = transform.update(
    as_jax(grads), transform.init(as_jax(params)), as_jax(params)
  )
  for name, grad in grads.items():
    bound = 0.3 * max(1e-3, np.sqrt((params[name] ** 2).sum()))
    norm = np.sqrt((grad**2).sum())
    expected = grad / max(1.0, norm / bound)
    np.testing.assert_allclose(clipped[name], expected, rtol=1e-5)
    changed = norm > bound
    assert changed == (name != 'calm')


def test_weight_decay_touches_kernels_alone():
  transform = optimizer.make(config(weight_decay=0.1, warmup=0))
  params = {
    'layer': {'kernel': jnp.full((2, 2), 3.0), 'bias': jnp.full(2, 3.0)},
    'norm': {'scale': jnp.full(2, 3.0)},
  }
  zero = {
    'layer': {'kernel': jnp.zeros((2, 2)), 'bias': jnp.zeros(2)},
    'norm': {'scale': jnp.zeros(2)},
  }
  updates, _ = transform.update(zero, transform.init(params), params)
  np.testing.assert_allclose(updates['layer']['kernel'], -LR * 0.1 * 3)
  np.testing.assert_array_equal(updates['layer']['bias'], 0)
  np.testing.assert_array_equal(updates['norm']['scale'], 0)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_first_nonfinite(bad):
  grads = {'a': jnp.ones(3), 'b': jnp.ones((2, 2)), 'c': jnp.ones(())}
  assert int(optimizer.first_nonfinite(grads)) == -1
  grads['c'] = jnp.array(bad)
  assert int(optimizer.first_nonfinite(grads)) == 2
  grads['b'] = grads['b'].at[1, 0].set(bad)
  assert int(optimizer.first_nonfinite(grads)) == 1
