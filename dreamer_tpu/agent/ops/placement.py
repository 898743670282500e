"""Sharding constraints and memory hints for activations.

The agent uses logical axis names; the backend in use maps them to a mesh. On a
single device all constraints are no-ops.
"""

from collections.abc import Callable
from typing import Any

import jax

from dreamer_tpu.agent.ops import backend


def with_logical_constraint(x: jax.Array, *axes: str | None) -> jax.Array:
  """Constrains the sharding of an activation on a mesh with a model axis.

  Args:
    x: Any array.
    axes: Names of the last dimensions: 'rows' of the batch; 'images' for rows
      that are split over the model axis too; a parameter's axis name; None
      keeps a dimension whole. The compiler decides on all dimensions before.

  Returns:
    `x`, constrained.
  """
  constrain = backend.constrain()
  if constrain is None:
    return x
  return constrain(x, ('any',) * (x.ndim - len(axes)) + axes)


def replicate(x: jax.Array) -> jax.Array:
  """Copies an array to every device."""
  constrain = backend.constrain()
  return x if constrain is None else constrain(x, None)


def split_inputs(kernel: jax.Array, axis: str) -> jax.Array:
  """Reshards a kernel [inputs, units] from its units to its inputs.

  Two constraints move the kernel and its gradient in the compute dtype; with
  one, XLA moves the float32 parameter and its moments.

  Args:
    kernel: [inputs, units] in the compute dtype.
    axis: Logical axis name of the inputs.
  """
  by_units = with_logical_constraint(kernel, None, 'units')
  return with_logical_constraint(by_units, axis, None)


def materialize(x: jax.Array) -> jax.Array:
  """Keeps XLA for CPU from writing the broadcast of `x` to memory."""
  if backend.form() is backend.Form.CPU:
    return jax.lax.optimization_barrier(x)
  return x


def map_batch_rows(fn: Callable, *args: Any) -> Any:
  """Calls `fn` on a batch; on a CPU one row at a time, to stay in its caches.

  Args:
    fn: Maps trees of [B, ...] to trees of [B, ...], row by row.
    *args: Arguments of `fn`.
  """
  if backend.form() is not backend.Form.CPU:
    return fn(*args)

  def one(row):
    rows = fn(*jax.tree.map(lambda x: x[None], row))
    return jax.tree.map(lambda x: x[0], rows)

  return jax.lax.map(one, args)
