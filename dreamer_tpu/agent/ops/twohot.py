"""Cross entropy to two-hot targets."""

import jax
import jax.numpy as jnp

from dreamer_tpu.agent.ops import backend


def cross_entropy(
  logits: jax.Array, bins: jax.Array, targets: list[jax.Array]
) -> jax.Array:
  """Returns the cross entropy to scalar targets, summed over their list.

  Args:
    logits: [..., bins] in any dtype.
    bins: float32 [bins], ascending.
    targets: float32 [...] each; non-finite ones give NaN.

  Returns:
    float32 [...].
  """
  if backend.form() is backend.Form.REFERENCE:
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.sum(_sum_of_two_hot(targets, bins) * logp, -1)
  return _cross_entropy(logits, bins, targets)


def two_hot(x: jax.Array, bins: jax.Array) -> jax.Array:
  """Splits the scalars [...] linearly between their two nearest bins.

  Args:
    x: float32 [...]; NaN if it is not finite.
    bins: float32 [bins], ascending.

  Returns:
    float32 [..., bins] weights that sum to one.
  """
  x = jnp.where(jnp.isfinite(x), x, jnp.nan)[..., None]
  below = jnp.pad(bins[:-1], (1, 0), constant_values=-jnp.inf)
  above = jnp.pad(bins[1:], (0, 1), constant_values=jnp.inf)
  slope = 1 / jnp.diff(bins)
  rising = (x - below) * jnp.pad(slope, (1, 0), constant_values=1)
  falling = (above - x) * jnp.pad(slope, (0, 1), constant_values=1)
  return jnp.clip(jnp.minimum(rising, falling), 0, 1)


def _sum_of_two_hot(targets, bins):
  return sum((two_hot(x, bins) for x in targets), jnp.zeros((), jnp.float32))


@jax.custom_vjp
def _cross_entropy(logits, bins, targets):
  """Saves the logits for the backward pass and nothing else of their size."""
  return _forward(logits, bins, targets)[0]


def _forward(logits, bins, targets):
  wide = logits.astype(jnp.float32)
  total = jax.nn.logsumexp(wide, -1, keepdims=True)
  loss = jnp.sum(_sum_of_two_hot(targets, bins) * (total - wide), -1)
  return loss, (logits, total, bins, targets)


def _backward(residuals, cotangent):
  logits, total, bins, targets = residuals
  probs = jnp.exp(logits.astype(jnp.float32) - total)
  target = _sum_of_two_hot(targets, bins)
  grad = cotangent[..., None] * (len(targets) * probs - target)
  return grad.astype(logits.dtype), None, None


_cross_entropy.defvjp(_forward, _backward)
