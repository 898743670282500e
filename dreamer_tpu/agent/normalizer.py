"""Return normalization by moving percentiles."""

import jax
import jax.numpy as jnp

State = dict[str, jax.Array]


def init() -> State:
  """Both percentiles start at 0 and are not debiased."""
  return {'low': jnp.zeros(()), 'high': jnp.zeros(())}


def update(
  state: State, x: jax.Array, *, rate: float, low: float, high: float
) -> State:
  """Moves both percentiles towards those of all of `x` (Eq. 12).

  Args:
    state: Scalars `low` and `high`.
    x: Returns of the whole global batch, any shape.
    rate: Weight of the new value.
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
  """The range between the percentiles, at least `limit` (Eq. 11)."""
  return jnp.maximum(limit, state['high'] - state['low'])
