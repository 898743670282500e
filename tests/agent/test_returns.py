"""Tests lambda-returns against a loop over steps."""

import jax
import numpy as np
import pytest

from dreamer_tpu.agent import returns

DISCOUNT, LAM = 0.9, 0.8


def slow(last, term, reward, boot):
  """Computes the recursion of the paper from the last step backwards."""
  steps = boot.shape[1]
  result = np.zeros((len(boot), steps - 1))
  future = boot[:, -1].astype(np.float64)
  for t in reversed(range(1, steps)):
    live = (1 - term[:, t]) * DISCOUNT
    cont = (1 - last[:, t]) * LAM
    future = reward[:, t] + live * ((1 - cont) * boot[:, t] + cont * future)
    result[:, t - 1] = future
  return result


@pytest.mark.parametrize('steps', [2, 3, 4, 5, 16, 17, 64])
def test_equals_a_loop_over_steps(steps):
  rng = np.random.default_rng(steps)
  shape = (5, steps)
  last = (rng.random(shape) < 0.2).astype(np.float32)
  term = (last * (rng.random(shape) < 0.5)).astype(np.float32)
  reward, boot = rng.normal(size=(2, *shape)).astype(np.float32) * 10
  actual = returns.lambda_return(last, term, reward, boot, DISCOUNT, LAM)
  np.testing.assert_allclose(
    actual, slow(last, term, reward, boot), rtol=1e-5, atol=1e-5
  )


def test_nan_reaches_the_steps_before_it_and_no_others():
  zeros = np.zeros((1, 9), np.float32)
  reward = zeros.copy()
  reward[0, 5] = np.nan  # received on arriving at step 5
  actual = returns.lambda_return(zeros, zeros, reward, zeros, DISCOUNT, LAM)
  assert np.isnan(actual[0]).tolist() == [True] * 5 + [False] * 3


def test_no_loop():
  x = np.zeros((2, 64), np.float32)
  jaxpr = jax.make_jaxpr(returns.lambda_return)(x, x, x, x, DISCOUNT, LAM)
  assert 'scan' not in str(jaxpr)
  assert 'while' not in str(jaxpr)
