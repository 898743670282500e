"""Return normalization by moving percentiles."""

import jax
import jax.numpy as jnp

State = dict[str, jax.Array]


def init() -> State:
  """Returns percentiles of 0; they are not debiased."""
  return {'low': jnp.zeros(()), 'high': jnp.zeros(())}


def update(
  state: State, x: jax.Array, *, rate: float, low: float, high: float
) -> State:
  """Returns moving averages of the percentiles of `x` (Eq. 12).

  Args:
    state: Scalars `low` and `high`, see `init`.
    x: Returns of the whole global batch, any shape.
    rate: Weight of the new percentiles.
    low: Lower percentile in 0..100.
    high: Upper percentile in 0..100.
  """
  ends = jnp.percentile(
    jax.lax.stop_gradient(x).astype(jnp.float32), jnp.array([low, high])
  )
  return {
    'low': (1 - rate) * state['low'] + rate * ends[0],
    'high': (1 - rate) * state['high'] + rate * ends[1],
  }


def scale(state: State, limit: float) -> jax.Array:
  """Returns the range of the percentiles, at least `limit` (Eq. 11)."""
  return jnp.maximum(limit, state['high'] - state['low'])
