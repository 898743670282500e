"""Converts between host-local and global arrays."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

Tree = Any


def to_global(sharding: Sharding, rows: Tree) -> Tree:
  """Makes global arrays from the rows that each process supplies.

  Args:
    sharding: Sharding of the rows, such as `rules.batch`.
    rows: NumPy arrays [local rows, ...].

  Returns:
    Arrays [rows of all processes, ...].
  """
  make = jax.make_array_from_process_local_data
  return jax.tree.map(lambda x: make(sharding, x), rows)


def to_local(tree: Tree) -> Tree:
  """Returns this process's rows of row-sharded arrays, once computed."""
  return jax.tree.map(_local_rows, tree)


def on_one_device(tree: Tree) -> Tree:
  """Returns the shards of replicated arrays on the first local device."""
  return jax.tree.map(lambda x: x.addressable_shards[0].data, tree)


def to_host(tree: Tree) -> Tree:
  """Returns replicated arrays as NumPy arrays, once computed."""
  return jax.device_get(on_one_device(tree))


def _local_rows(x: jax.Array) -> np.ndarray:
  shards = {(s.index[0].start or 0): s.data for s in x.addressable_shards}
  rows = jax.device_get([shards[start] for start in sorted(shards)])
  return rows[0] if len(rows) == 1 else np.concatenate(rows)
