"""Adaptive gradient clipping, LaProp and learning-rate schedules."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def clip_by_tensor(limit: float, floor: float = 1e-3) -> Any:
  """Clips the L2 norm of each gradient relative to that of its parameter.

  Returns g / max(1, |g| / (limit max(floor, |p|))), with the norms of whole
  tensors. `optax.adaptive_grad_clip` takes norms per unit instead.

  Args:
    limit: Maximum ratio of the two norms.
    floor: Minimum norm of a parameter.
  """

  def update(updates, params):
    def clip(grad, param):
      bound = limit * jnp.maximum(floor, jnp.linalg.norm(param.ravel()))
      norm = jnp.linalg.norm(grad.ravel())
      return grad / jnp.maximum(1.0, norm / bound)

    return jax.tree.map(clip, updates, params)

  return optax.stateless(update)


def learning_rate(config: Any) -> optax.Schedule:
  """Returns a linear warm-up followed by the schedule of the configuration."""
  after = {
    'constant': lambda: optax.constant_schedule(config.lr),
    'linear': lambda: optax.linear_schedule(
      config.lr, 0.0, config.decay_steps - config.warmup
    ),
    'cosine': lambda: optax.cosine_decay_schedule(
      config.lr, config.decay_steps - config.warmup
    ),
  }[config.schedule]()
  if not config.warmup:
    return after
  ramp = optax.linear_schedule(0.0, config.lr, config.warmup)
  return optax.join_schedules([ramp, after], [config.warmup])


def _is_kernel(params):
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )


def make(config: Any) -> optax.GradientTransformation:
  """Makes the optimizer of all parameters.

  Args:
    config: `agent.opt` of the configuration.
  """
  parts = [
    clip_by_tensor(config.agc),
    optax.scale_by_rms(
      config.beta2, config.eps, eps_in_sqrt=False, bias_correction=True
    ),
    optax.ema(config.momentum, debias=True),
  ]
  if config.weight_decay:
    parts.append(optax.add_decayed_weights(config.weight_decay, _is_kernel))
  parts.append(optax.scale_by_learning_rate(learning_rate(config)))
  return optax.chain(*parts)


def first_nonfinite(grads: Any) -> jax.Array:
  """Returns the index of the first leaf with a NaN or Inf, or -1, as int32."""
  sums = [jnp.sum(jnp.square(x)) for x in jax.tree.leaves(grads)]
  bad = ~jnp.isfinite(jnp.stack(sums))
  return jnp.where(bad.any(), jnp.argmax(bad), -1).astype(jnp.int32)
