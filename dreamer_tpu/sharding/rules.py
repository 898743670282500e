"""Maps logical axis names to mesh axes: shardings of the agent's arrays."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dreamer_tpu.agent.ops import backend
from dreamer_tpu.errors import UserError
from dreamer_tpu.sharding.mesh import BATCH, divisors

Tree = Any


def batch(mesh: Mesh) -> NamedSharding:
  """Splits rows over `data` and `fsdp`, replicated over `model`."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
  """Replicates an array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def check(mesh: Mesh, rules: Mapping[str, str | None], variables: Tree) -> None:
  """Checks that the blocks, most of the model, divide over the mesh.

  Other axes that do not divide are small; they are replicated.

  Args:
    mesh: The device mesh.
    rules: Mesh axis or None by logical axis name.
    variables: The model's `nnx.Param`s with `axes` metadata, nested by name.

  Raises:
    UserError: They do not; names a parameter, the mesh axis and valid sizes.
  """
  axis = rules.get('blocks')
  if not axis:
    return
  for path, variable in nnx.to_flat_state(variables):
    axes = variable.get_metadata('axes')
    sizes = dict(zip(axes, variable.shape, strict=True))
    blocks = sizes.get('blocks', 0)
    if blocks % mesh.shape[axis]:
      raise UserError(
        f'mesh.{axis}={mesh.shape[axis]} does not divide the {blocks} blocks '
        f'of {"/".join(map(str, path))}; choose one of {divisors(blocks)}.'
      )


def state(
  mesh: Mesh,
  rules: Mapping[str, str | None],
  variables: Tree,
  abstract: Tree,
) -> Tree:
  """Returns the shardings of the agent's state.

  Parameters are sharded by their logical axes. The slow value and the
  optimizer's moments are sharded like the parameters of their names. All else
  is replicated.

  Args:
    mesh: The device mesh.
    rules: Mesh axis or None by logical axis name.
    variables: The model's `nnx.Param`s with `axes` metadata, nested by name.
    abstract: The state as ShapeDtypeStructs.

  Returns:
    A NamedSharding per leaf of `abstract`.
  """
  specs: dict[tuple, PartitionSpec] = {
    path: _spec(mesh, rules, variable)
    for path, variable in nnx.to_flat_state(variables)
  }
  specs |= {
    ('slow_value', *path[1:]): spec
    for path, spec in specs.items()
    if path[0] == 'value'
  }

  def sharding(path, leaf):
    names = tuple(getattr(k, 'key', None) for k in path)
    for start in range(len(names)):
      if names[start:] in specs:
        return NamedSharding(mesh, specs[names[start:]])
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(sharding, abstract)


def constraints(
  mesh: Mesh, rules: Mapping[str, str | None]
) -> backend.Constrain | None:
  """Returns the sharding constraints of activations; None on one device.

  'rows' are split like the batch, 'images' over `model` too where they divide.
  'any' is left to the compiler. Other names are sharded like axes of
  parameters. Without a model axis only replication is constrained.

  Args:
    mesh: The device mesh.
    rules: Mesh axis or None by logical axis name.
  """
  if mesh.size == 1:
    return None

  def constrain(x: jax.Array, axes: backend.Axes | None) -> jax.Array:
    if axes is None:
      return jax.lax.with_sharding_constraint(x, replicated(mesh))
    if mesh.shape['model'] == 1:
      return x
    special = {
      'rows': BATCH,
      'images': BATCH if len(x) % mesh.size else (*BATCH, 'model'),
      'any': PartitionSpec.UNCONSTRAINED,
    }
    spec = [
      special.get(name or '') or _fitting(mesh, rules, name, size)
      for name, size in zip(axes, x.shape, strict=True)
    ]
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.lax.with_sharding_constraint(x, sharding)

  return constrain


def gather(tree: Tree, shardings: Tree, dtype: Any) -> Tree:
  """Gathers parameters over `fsdp` inside of a jitted function.

  Kernels are gathered in the compute dtype, each when it is first used; their
  gradients are scattered back to the shards. Without this, XLA multiplies by
  shards where it estimates that to be cheaper, and on a mesh of data, fsdp and
  model its gradients of a dense layer's inputs are wrong (JAX 0.10.2, both
  partitioners).

  Args:
    tree: Parameters.
    shardings: Shardings of the parameters, a tree of the same structure.
    dtype: The compute dtype.
  """
  return jax.tree.map(lambda x, s: _gather(x, s, dtype), tree, shardings)


def _gather(x: jax.Array, sharding: NamedSharding, dtype: Any) -> jax.Array:
  if 'fsdp' not in sharding.spec or sharding.mesh.shape['fsdp'] == 1:
    return x
  spec = PartitionSpec(*[a if a != 'fsdp' else None for a in sharding.spec])
  whole = NamedSharding(sharding.mesh, spec)

  @jax.custom_vjp
  def use(x):
    return jax.lax.with_sharding_constraint(x, whole)

  def backward(_, grad):
    return (jax.lax.with_sharding_constraint(grad, sharding),)

  use.defvjp(lambda x: (use(x), None), backward)
  return use(x.astype(dtype) if x.ndim > 1 else x)


def _spec(mesh, rules, variable) -> PartitionSpec:
  """Uses each mesh axis at most once per array, and only where it divides."""
  spec: list[str | None] = []
  for name, size in zip(
    variable.get_metadata('axes'), variable.shape, strict=True
  ):
    axis = _fitting(mesh, rules, name, size)
    spec.append(axis if axis not in spec else None)
  return PartitionSpec(*spec)


def _fitting(mesh, rules, name: str | None, size: int) -> str | None:
  """Returns the mesh axis of a logical axis if it divides its size."""
  axis = rules.get(name) if name else None
  return axis if axis and size % mesh.shape[axis] == 0 else None
