"""The device mesh: three axes, aligned with hosts."""

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
  """Builds a mesh over all devices of all processes.

  Every process owns whole rows of the batch: `data` spans the hosts, `model`
  stays within a host.

  Args:
    config: Sizes of `data`, `fsdp` and `model`; one of them may be -1, which
      stands for the remaining devices.
    devices: Devices to use, such as those of a topology; all by default.

  Raises:
    UserError: The product of the sizes is not the number of devices, or a
      model axis would cross hosts.
  """
  devices = jax.devices() if devices is None else devices
  counts = collections.Counter(x.process_index for x in devices)
  hosts, local = len(counts), max(counts.values())
  if hosts * local != len(devices):
    raise UserError(
      f'{len(devices)} devices are spread unevenly over {hosts} hosts; use a '
      f'multiple of {local} devices.'
    )
  data, fsdp, model = _resolve(config, len(devices))
  if local % model:
    raise UserError(
      f'mesh.model={model} does not divide the {local} devices of a host; '
      f'choose one of {divisors(local)}.'
    )
  data_hosts = math.gcd(data, hosts)
  fsdp_hosts = hosts // data_hosts
  if fsdp % fsdp_hosts:
    raise UserError(
      f'mesh.data={data} and mesh.fsdp={fsdp} do not divide over {hosts} '
      f'hosts; make mesh.data a multiple of {hosts}.'
    )
  grid = mesh_utils.create_hybrid_device_mesh(
    mesh_shape=(data // data_hosts, fsdp // fsdp_hosts, model),
    dcn_mesh_shape=(data_hosts, fsdp_hosts, 1),
    devices=devices,
    process_is_granule=True,
    allow_split_physical_axes=True,
  )
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_batch(mesh: Mesh, batch_size: int) -> None:
  """Checks that a batch divides over the mesh.

  Raises:
    UserError: It does not; names a nearby batch size that does.
  """
  shards = batch_shards(mesh)
  if batch_size % shards:
    near = max(shards, round(batch_size / shards) * shards)
    raise UserError(
      f'batch_size={batch_size} does not divide over the {shards} devices of '
      f'mesh.data x mesh.fsdp; choose batch_size={near} or another mesh.'
    )


def batch_shards(mesh: Mesh) -> int:
  """Returns the number of shards that the rows of a batch are split into."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def divisors(number: int) -> list[int]:
  """Returns all divisors in increasing order."""
  return [x for x in range(1, number + 1) if number % x == 0]


def _resolve(config: Any, devices: int) -> list[int]:
  """Returns the sizes of the axes, with -1 replaced."""
  sizes = [config[axis] for axis in AXES]
  if -1 in sizes:
    fixed = math.prod(x for x in sizes if x != -1)
    sizes[sizes.index(-1)] = devices // fixed
  if math.prod(sizes) != devices:
    text = ', '.join(f'mesh.{axis}={config[axis]}' for axis in AXES)
    raise UserError(
      f'{text} do not multiply to {devices} devices; choose from '
      f'{divisors(devices)}, or -1 for the remaining devices.'
    )
  return sizes
