"""Between the arrays of one host and those of the whole mesh."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

Tree = Any


def to_global(sharding: Sharding, rows: Tree) -> Tree:
  """Global arrays from the rows that this process supplies.

  Args:
    sharding: Of the rows, as `rules.batch`.
    rows: NumPy arrays [local rows, ...].

  Returns:
    Arrays [rows of all processes, ...].
  """
  make = jax.make_array_from_process_local_data
  return jax.tree.map(lambda x: make(sharding, x), rows)


def to_local(tree: Tree) -> Tree:
  """This process's rows of arrays that are sharded over their rows.

  Waits until they are computed.
  """
  return jax.tree.map(_local_rows, tree)


def on_one_device(tree: Tree) -> Tree:
  """The first local device's copy of replicated arrays, without copying."""
  return jax.tree.map(lambda x: x.addressable_shards[0].data, tree)


def to_host(tree: Tree) -> Tree:
  """Replicated arrays as NumPy arrays; waits until they are computed."""
  return jax.device_get(on_one_device(tree))


def _local_rows(x: jax.Array) -> np.ndarray:
  shards = {(s.index[0].start or 0): s.data for s in x.addressable_shards}
  rows = jax.device_get([shards[start] for start in sorted(shards)])
  return rows[0] if len(rows) == 1 else np.concatenate(rows)
