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
  return _discounted_sums(interim[:, 1:], (live * cont)[:, 1:], boot[:, -1:])


def _discounted_sums(
  value: jax.Array, factor: jax.Array, end: jax.Array
) -> jax.Array:
  """x_t = value_t + factor_t x_{t+1} along the second axis, up to `end`.

  Every round doubles the steps that are summed up. A loop over steps would take
  accelerators much longer to start, step by step, than to compute.

  Args:
    value: [B, T].
    factor: [B, T].
    end: [B, 1], what follows the last step.
  """
  spans = [2**i for i in range(value.shape[1].bit_length())]
  value = jnp.concatenate([value, end], 1)
  factor = jnp.pad(factor, ((0, 0), (0, 1)))
  for span in spans:
    later = lambda x, n=span: jnp.pad(x[:, n:], ((0, 0), (0, n)))
    value, factor = value + factor * later(value), factor * later(factor)
  return value[:, :-1]
