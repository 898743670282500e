"""The policy's loss with and without cached results of its layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer_tpu.agent import heads
from dreamer_tpu.metrics import flops
from tests.helpers import small


@pytest.fixture(scope='module')
def case():
  """A policy as a function, its parameters, features and actions."""
  keys = jax.random.split(jax.random.key(0), 3)
  feat = tuple(
    jax.random.normal(key, (5, 7, n))
    for key, n in zip(keys[:2], (12, 4), strict=True)
  )
  head = heads.PolicyHead(
    16,
    small.ACT,
    small.config().policy,
    dtype=jnp.float32,
    rngs=nnx.Rngs(params=0),
  )
  graph, params = nnx.split(head)
  policy = lambda params, *args: nnx.merge(graph, params)(*args)
  noise = head.noise(keys[2], (5, 7))
  return policy, params, feat, policy(params, feat).sample(noise)


def loss(case, params, cached):
  policy, _, feat, actions = case
  dist = policy(params, feat, cached)
  return (dist.log_prob(actions) + sum(dist.entropy().values())).mean()


def test_gradients_with_cached_results(case):
  policy, params, feat, _ = case
  cached = policy(params, feat).linear
  run = jax.jit(lambda *args: jax.value_and_grad(loss, 1)(case, *args))
  expected, actual = run(params, None), run(params, cached)
  assert jax.tree.all(jax.tree.map(lambda x: bool(x.any()), expected[1]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), expected, actual
  )


def test_cached_results_are_not_computed_again(case):
  """Products: at most those of the gradients, two per product."""
  policy, params, feat, _ = case
  cached = policy(params, feat).linear
  forward = flops.count(lambda *x: policy(*x).linear, params, feat).matmul
  gradient = jax.grad(lambda params: loss(case, params, cached))
  assert flops.count(gradient, params).matmul <= 2 * forward


def test_cached_results_are_used(case):
  _, params, feat, _ = case
  cached = case[0](params, feat).linear
  other = jax.tree.map(lambda x: jnp.roll(x, 1, -1), cached)
  assert abs(loss(case, params, other) - loss(case, params, cached)) > 1e-4
