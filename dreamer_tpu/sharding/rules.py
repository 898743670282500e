"""Where every array of the agent's state lives on the mesh."""

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
  """Rows over `data` and `fsdp` together, repeated over `model`."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def check(mesh: Mesh, rules: Mapping[str, str | None], variables: Tree) -> None:
  """Refuses a mesh over which the blocks, most of the model, do not divide.

  Any other axis that does not divide is small and stays whole.

  Args:
    mesh: The device mesh.
    rules: Mesh axis, or None, per logical axis name.
    variables: The model's `nnx.Param`s with `axes` metadata, nested by name.

  Raises:
    UserError: Names the parameter, the mesh axis and the sizes that divide.
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
  """Shardings of the agent's whole state.

  Parameters follow their logical axes; whatever mirrors them (the slow value,
  the optimizer's moments) follows the parameter of that name; all else is
  replicated.

  Args:
    mesh: The device mesh.
    rules: Mesh axis, or None, per logical axis name.
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

  'rows' are those of the batch, 'images' are also split over `model` where
  they divide, 'any' is left open, the other names are as of parameters.
  Without a model axis they say nothing that the batch does not.

  Args:
    mesh: The device mesh.
    rules: Mesh axis, or None, per logical axis name.
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
  """Parameters as products take them: whole over `fsdp`, inside of a jit.

  Kernels travel in the compute dtype, each when it is first used; their
  gradients return to the shards. Without this, XLA multiplies by the shards
  where it thinks that cheaper, and on a mesh of data, fsdp and model it gets
  the gradients of a dense layer's inputs wrong (JAX 0.10.2, both
  partitioners).

  Args:
    tree: Parameters.
    shardings: Theirs, a tree of the same structure.
    dtype: In which products are computed.
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
  """A mesh axis is used once per array, and only where it divides."""
  spec: list[str | None] = []
  for name, size in zip(
    variable.get_metadata('axes'), variable.shape, strict=True
  ):
    axis = _fitting(mesh, rules, name, size)
    spec.append(axis if axis not in spec else None)
  return PartitionSpec(*spec)


def _fitting(mesh, rules, name: str | None, size: int) -> str | None:
  axis = rules.get(name) if name else None
  return axis if axis and size % mesh.shape[axis] == 0 else None
