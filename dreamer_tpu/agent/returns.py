"""Lambda-returns."""

import chex
import jax
import jax.numpy as jnp


def lambda_return(
  last: jax.Array,
  term: jax.Array,
  reward: jax.Array,
  boot: jax.Array,
  discount: float,
  lam: float,
) -> jax.Array:
  """Lambda-returns along the second axis (Eq. 7 of the paper).

  Args:
    last: [B, T] 1 where the sequence is cut, so that the value takes over.
    term: [B, T] probability that the episode terminated.
    reward: [B, T] reward received on arriving at each step.
    boot: [B, T] value estimates.
    discount: Factor per step.
    lam: Mixing factor of n-step returns.

  Returns:
    float32 [B, T - 1] returns of all steps but the last.
  """
  chex.assert_equal_shape([last, term, reward, boot])
  chex.assert_rank(boot, 2)
  live = (1 - term.astype(jnp.float32)) * discount
  cont = (1 - last.astype(jnp.float32)) * lam
  interim = reward + live * (1 - cont) * boot
  factor = live * cont

  def step(future, inputs):
    value, weight = inputs
    future = value + weight * future
    return future, future

  time_first = (interim[:, 1:].T, factor[:, 1:].T)
  _, returns = jax.lax.scan(step, boot[:, -1], time_first, reverse=True)
  return returns.T
