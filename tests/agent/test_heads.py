"""The policy's loss where its layers have been computed before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer_tpu.agent import heads
from tests.helpers import small


@pytest.fixture(scope='module')
def case():
  """A policy as a function of parameters; these, features and actions."""
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
  return policy, params, feat, policy(params, feat).choose(noise)


def loss(case, params, known):
  policy, _, feat, actions = case
  dist = policy(params, feat, known)
  return (dist.log_prob(actions) + sum(dist.entropy().values())).mean()


def test_learns_from_known_layers_as_from_computed_ones(case):
  policy, params, feat, _ = case
  known = policy(params, feat).linear
  assert len(known) == small.config().policy.layers
  run = jax.jit(lambda *args: jax.value_and_grad(loss, 1)(case, *args))
  expected, actual = run(params, None), run(params, known)
  assert jax.tree.all(jax.tree.map(lambda x: bool(x.any()), expected[1]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), expected, actual
  )


def test_computes_no_known_layer(case):
  _, params, feat, _ = case
  known = case[0](params, feat).linear
  other = [jnp.roll(x, 1, -1) for x in known]
  assert abs(loss(case, params, other) - loss(case, params, known)) > 1e-3
