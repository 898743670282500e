"""Tests the cross entropy to two-hot targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_tpu.agent import distributions
from dreamer_tpu.agent.ops import backend, twohot

BINS = distributions.twohot_bins(41)
TARGETS = [jnp.array([0.0, -3.25, 1e9]), jnp.array([1.0, 700.0, -1e9])]


def loss_and_grad(form, logits, targets):
  with backend.using(backend.Backend(form)):
    loss = lambda logits: twohot.cross_entropy(logits, BINS, targets)
    value, vjp = jax.vjp(loss, logits)
    return value, vjp(jnp.array([1.0, -2.0, 3.0]))[0]


@pytest.mark.parametrize('form', [backend.Form.ACCELERATOR, backend.Form.CPU])
@pytest.mark.parametrize(
  ('dtype', 'rtol'), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)]
)
@pytest.mark.parametrize('count', [1, 2])
def test_agrees_with_the_definition(form, dtype, rtol, count):
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(3, 41)), dtype)
  args = logits, TARGETS[:count]
  actual = loss_and_grad(form, *args)
  expected = loss_and_grad(backend.Form.REFERENCE, *args)
  assert [x.dtype for x in actual] == [jnp.float32, dtype]
  for x, y in zip(actual, expected, strict=True):
    np.testing.assert_allclose(
      np.float32(x), np.float32(y), rtol=rtol, atol=1e-5
    )


def test_two_hot_encodes_the_scalar():
  x = jnp.array([0.0, -3.25, 700.0, 1e30])
  weights = np.asarray(twohot.two_hot(x, BINS))
  assert ((weights > 0).sum(-1) <= 2).all()
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
  decoded = (weights.astype(np.float64) * np.asarray(BINS)).sum(-1)
  np.testing.assert_allclose(decoded[:3], x[:3], rtol=1e-5, atol=1e-6)
  assert decoded[3] == BINS[-1]


@pytest.mark.parametrize('form', backend.Form)
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_nonfinite_targets_give_nan(form, bad):
  targets = [TARGETS[0].at[1].set(bad)]
  loss, grad = loss_and_grad(form, jnp.zeros((3, 41)), targets)
  assert np.isnan(loss).tolist() == [False, True, False]
  assert np.isnan(grad).any(-1).tolist() == [False, True, False]


def test_saves_no_other_array_of_bins():
  """The backward pass keeps the logits only, in their own dtype."""
  logits, targets = jnp.zeros((64, 41), jnp.bfloat16), [jnp.zeros(64)]
  loss = lambda x: twohot.cross_entropy(x, BINS, targets)
  _, vjp = jax.vjp(loss, logits)
  saved = sum(x.nbytes for x in jax.tree.leaves(vjp))
  assert saved <= logits.nbytes + 1024
