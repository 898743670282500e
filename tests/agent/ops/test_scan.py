"""`scan` against `jax.lax.scan`, and the size of its backward loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer_tpu.agent.ops import backend, matmul, norm, scan
from tests.helpers.jaxprs import equations

STEPS, ROWS, UNITS, BLOCKS = 5, 3, 8, 2


@pytest.fixture(scope='module')
def inputs():
  """Weights, an initial state and inputs."""
  keys = iter(jax.random.split(jax.random.key(0), 7))
  normal = lambda *shape: jax.random.normal(next(keys), shape)
  weights = {
    'dense': normal(UNITS, UNITS),
    'block': normal(BLOCKS, UNITS // BLOCKS, UNITS // BLOCKS),
    'bias': normal(UNITS),
    'scale': normal(UNITS),
  }
  return weights, normal(ROWS, UNITS), normal(STEPS, ROWS, UNITS)


def loss(weights, start, xs):
  """A scan with dense, block-diagonal and repeated products."""
  # Derived weights: gradients continue outside of the loop.
  dense, scale = 0.1 * weights['dense'].T, 1 + weights['scale']

  create = scan.Layer.create
  linear = create(matmul.linear, dense, weights['bias'])
  hidden = linear.then(create(norm.norm_silu, scale))
  by_block = create(matmul.product, weights['block'])
  last = create(lambda xs, kernel: matmul.product(xs[0], kernel) + xs[1], dense)

  def step(state, x):
    y = matmul.to_blocks(jnp.tanh(hidden(state) + x), BLOCKS)
    y = matmul.from_blocks(by_block(y))
    state = jnp.tanh(last((y, x)))
    return state, (y, state > 0, x)

  states, (ys, positive, copies) = scan.scan(step, start, xs)
  total = jnp.sum(states[-1]) + jnp.sum(states**3) + jnp.sum(ys**2)
  return total + positive.mean() + copies.sum()


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('form', [backend.Form.ACCELERATOR, backend.Form.CPU])
def test_value_and_gradients(inputs, form, dtype):
  inputs = jax.tree.map(lambda x: x.astype(dtype), inputs)
  results = []
  for each in (backend.Form.REFERENCE, form):
    with backend.using(backend.Backend(each)):
      results.append(jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*inputs))
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(results[0][1]))
  tolerance = 1e-5 if dtype == jnp.float32 else 0.05
  for expected, actual in zip(*map(jax.tree.leaves, results), strict=True):
    assert actual.dtype == expected.dtype
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(
      np.float32(actual), np.float32(expected), atol=tolerance * scale
    )


def test_value_without_gradients(inputs):
  expected = jax.jit(loss)(*inputs)
  with backend.using(backend.Backend(backend.Form.REFERENCE)):
    np.testing.assert_allclose(loss(*inputs), expected, rtol=1e-6)


def test_the_backward_loop_carries_no_gradient_of_a_weight(inputs):
  """At most the state; the gradients of weights that are not used are zero."""
  jaxpr = jax.make_jaxpr(jax.grad(loss))(*inputs).jaxpr
  loops = [x for x in equations(jaxpr) if x.primitive.name == 'scan']
  carried = [
    var.aval.size for x in loops for var in x.outvars[: x.params['num_carry']]
  ]
  assert sum(carried) <= 2 * ROWS * UNITS + len(loops)


def test_weights_from_inside_of_the_loop_are_refused(inputs):
  weights, start, xs = inputs

  def step(state, x):
    kernel = weights['dense'] * x.mean()
    return scan.Layer.create(matmul.product, kernel)(state), x

  run = lambda start: scan.scan(step, start, xs)[0][-1].sum()
  for fn in (run, jax.jit(run), jax.grad(run)):
    with pytest.raises(ValueError, match='before the scan'):
      fn(start)
