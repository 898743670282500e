"""The device mesh: three axes, host-aligned."""

import collections
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from dreamer_tpu.errors import UserError

AXES = ('data', 'fsdp', 'model')
BATCH = ('data', 'fsdp')


def make(config: Any, devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh over all devices of all processes.

  Every process owns whole rows of the batch: `data` spans the hosts, `model`
  stays within one.

  Args:
    config: `mesh` of the configuration: sizes of `data`, `fsdp`, `model`; one
      of them may be -1, the rest.
    devices: In place of all devices, such as those of a topology.

  Raises:
    UserError: The sizes do not multiply to the number of devices, or a model
      axis would cross hosts.
  """
  devices = jax.devices() if devices is None else devices
  counts = collections.Counter(x.process_index for x in devices)
  hosts, local = len(counts), max(counts.values())
  if hosts * local != len(devices):
    raise UserError(
      f'{len(devices)} devices are not the same number on each of {hosts} '
      f'hosts; take a multiple of {local}.'
    )
  data, fsdp, model = _resolve(config, len(devices))
  if local % model:
    raise UserError(
      f'mesh.model={model} does not divide the {local} devices of a host; '
      f'choose one of {divisors(local)}.'
    )
  over_data = math.gcd(data, hosts)
  over_fsdp = hosts // over_data
  if fsdp % over_fsdp:
    raise UserError(
      f'mesh.data={data} and mesh.fsdp={fsdp} do not divide over {hosts} '
      'hosts; make mesh.data a multiple of that number.'
    )
  shape = (data // over_data, fsdp // over_fsdp, model)
  across = (over_data, over_fsdp, 1)
  grid = mesh_utils.create_hybrid_device_mesh(
    shape,
    across,
    devices,
    process_is_granule=True,
    allow_split_physical_axes=True,
  )
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(mesh: Mesh, batch_size: int) -> None:
  """Refuses a batch that does not divide over the mesh.

  Raises:
    UserError: Names the batch sizes nearby that do.
  """
  rows = batch_shards(mesh)
  if batch_size % rows:
    near = max(rows, round(batch_size / rows) * rows)
    raise UserError(
      f'batch_size={batch_size} does not divide over the {rows} devices of '
      f'mesh.data x mesh.fsdp; choose batch_size={near} or another mesh.'
    )


def batch_shards(mesh: Mesh) -> int:
  """Into how many parts the rows of a batch are split."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def divisors(number: int) -> list[int]:
  """All divisors in increasing order."""
  return [x for x in range(1, number + 1) if number % x == 0]


def _resolve(config: Any, devices: int) -> list[int]:
  sizes = [config[axis] for axis in AXES]
  text = ', '.join(f'mesh.{axis}={config[axis]}' for axis in AXES)
  fixed = math.prod(x for x in sizes if x != -1)
  if -1 in sizes and devices % fixed == 0:
    sizes[sizes.index(-1)] = devices // fixed
  if math.prod(sizes) != devices:
    raise UserError(
      f'{text} do not multiply to the {devices} devices there are; sizes that '
      f'divide them: {divisors(devices)}, -1 stands for the rest.'
    )
  return sizes
