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
  """Returns the lambda-return of trajectories (Eq. 7 of the paper).

  Args:
    last: [B, T] 1 where the return bootstraps from the value.
    term: [B, T] probability that the episode terminated.
    reward: [B, T] reward received on arriving at each step.
    boot: [B, T] value estimates.
    discount: Factor per step.
    lam: Mixing weight of longer returns.

  Returns:
    float32 [B, T - 1] returns of all steps but the last.
  """
  chex.assert_equal_shape([last, term, reward, boot])
  chex.assert_rank(boot, 2)
  live = (1 - term.astype(jnp.float32)) * discount
  cont = (1 - last.astype(jnp.float32)) * lam
  interim = reward + live * (1 - cont) * boot
  # Solves x_t = value_t + factor_t x_{t+1} in log(T) parallel steps. On
  # accelerators, a loop would spend most of its time launching steps.
  value = jnp.concatenate([interim[:, 1:], boot[:, -1:]], 1)
  factor = jnp.pad((live * cont)[:, 1:], ((0, 0), (0, 1)))
  _, sums = jax.lax.associative_scan(
    lambda later, x: (x[0] * later[0], x[1] + x[0] * later[1]),
    (factor, value),
    reverse=True,
    axis=1,
  )
  return sums[:, :-1]
