"""RMSNorm followed by SiLU."""

import functools

import jax
import jax.numpy as jnp

from dreamer_tpu.agent.ops import backend, placement

Axes = int | tuple[int, ...]


def norm_silu(x: jax.Array, scale: jax.Array, axes: Axes = -1) -> jax.Array:
  """Applies RMSNorm in float32 and SiLU.

  Args:
    x: Any array.
    scale: float32, broadcasts to `x`.
    axes: Axes over which the mean square is taken.

  Returns:
    Array like `x`.
  """
  if backend.form() is backend.Form.REFERENCE:
    return _norm_silu(x, scale, axes)
  return _fast_norm_silu(x, scale, axes)


def _norm_silu(x, scale, axes):
  return _scaled_silu(x, scale, _inverse_rms(x, axes))


def _inverse_rms(x: jax.Array, axes: Axes) -> jax.Array:
  mean = jnp.mean(jnp.square(x.astype(jnp.float32)), axes, keepdims=True)
  return jax.lax.rsqrt(mean + 1e-4)


def _scaled_silu(x, scale, inverse):
  return jax.nn.silu((x.astype(jnp.float32) * inverse * scale).astype(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _fast_norm_silu(x, scale, axes):
  """Saves only `x` and its inverse RMS for the backward pass.

  The inverse RMS is saved because it is a sum over devices on a model axis.
  """
  return _norm_silu(x, scale, axes)


def _forward(x, scale, axes):
  inverse = _inverse_rms(x, axes)
  return _scaled_silu(x, scale, inverse), (x, scale, inverse)


def _backward(axes, residuals, cotangent):
  x, scale, inverse = residuals
  inverse = placement.materialize(inverse)
  unit = x.astype(jnp.float32) * inverse
  y = unit * scale
  gate = jax.nn.sigmoid(y)
  d_y = cotangent.astype(jnp.float32) * (gate + y * gate * (1 - gate))
  d_unit = d_y * scale
  mean = placement.materialize(jnp.mean(d_unit * unit, axes, keepdims=True))
  d_x = inverse * (d_unit - unit * mean)
  d_scale = _unbroadcast(d_y * unit, scale.shape)
  return d_x.astype(x.dtype), d_scale.astype(scale.dtype)


_fast_norm_silu.defvjp(_forward, _backward)


def _unbroadcast(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Sums over the axes that broadcasting from `shape` added or widened."""
  x = x.sum(tuple(range(x.ndim - len(shape))))
  ones = tuple(i for i, n in enumerate(shape) if n == 1 != x.shape[i])
  return x.sum(ones, keepdims=True)
