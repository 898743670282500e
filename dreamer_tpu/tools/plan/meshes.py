"""Which mesh is likely the fastest for a model on some chips."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from dreamer_tpu.agent import Agent
from dreamer_tpu.errors import UserError
from dreamer_tpu.learner.steps import Steps
from dreamer_tpu.sharding import mesh as mesh_lib
from dreamer_tpu.tools.plan import hardware, step, topology

# Sums over `model` in a step of the scan, forward and backward: the dense
# inputs, the norms and the posterior, there and back.
_SUMS_PER_STEP = 8
# Messages that gathering weights and scattering gradients takes: what the
# compiler leaves of one each per kernel.
_FSDP_MESSAGES = 40
# Recurrent weights of so many bytes stay on the chip during a scan; larger
# ones are read again at every step.
_ON_CHIP = 64 * 2**20
# At most so many meshes are compiled to find one that fits.
_TRIALS = 4


def suggest(
  config: ConfigDict, agent: Agent, name: str, chips: int | None = None
) -> step.Plan:
  """The plan of the mesh with the lowest predicted time that fits.

  The prediction orders the meshes; they are compiled in that order until one
  fits.

  Args:
    config: Of the run; its mesh does not matter.
    agent: From `step.make_agent`.
    name: Of the topology.
    chips: Uses only the first so many chips of it.

  Returns:
    The plan that fits, or the one that is the closest to it.

  Raises:
    UserError: No mesh divides chips, hosts, blocks and batch.
  """
  order = sorted(predictions(config, agent, name, chips))
  if not order:
    raise UserError(
      f'No mesh of {name} divides batch_size={config.batch_size} and the '
      f'{config.agent.rssm.blocks} blocks; choose another batch_size.'
    )
  tried: list[step.Plan] = []
  for _, sizes in order[:_TRIALS]:
    plan = step.make(_with_mesh(config, sizes), agent, name, chips)
    if plan.fits:
      return plan
    tried.append(plan)
  return min(tried, key=lambda x: x.peak)


def predictions(
  config: ConfigDict, agent: Agent, name: str, chips: int | None = None
) -> Iterator[tuple[float, tuple[int, ...]]]:
  """Yields predicted seconds and sizes of every mesh whose state fits."""
  devices = topology.devices(name, chips)
  chip = hardware.CHIPS[name.partition(':')[0]]
  for sizes in _candidates(len(devices)):
    changed = _with_mesh(config, sizes)
    try:
      mesh = mesh_lib.make(changed.mesh, devices)
      mesh_lib.check_batch(mesh, config.batch_size)
      steps = Steps(
        agent, mesh, config.sharding.rules, batch_size=config.batch_size
      )
    except UserError:
      continue
    state = _bytes(steps.abstract)
    if state < chip.hbm:
      yield _predict(config, agent, chip, steps, mesh, state), sizes


def _candidates(chips: int) -> Iterator[tuple[int, int, int]]:
  for model in mesh_lib.divisors(chips):
    for fsdp in mesh_lib.divisors(chips // model):
      yield chips // model // fsdp, fsdp, model


def _predict(config, agent, chip, steps, mesh, state) -> float:
  """Seconds that differ between meshes: weights, gradients and sums."""
  sizes = dict(mesh.shape)
  rows = config.batch_size // mesh_lib.batch_shards(mesh)
  params = steps.abstract['params']
  split = sizes['model'] if sizes['model'] > 1 else 1
  width = agent.dtype.itemsize / 4
  recurrent = _bytes(params['rssm']) * sizes['fsdp'] * width
  reads = 3 * config.batch_length + config.agent.imag_length
  if recurrent < _ON_CHIP:
    reads = 3
  moved = 2 * state + recurrent * reads
  network = 0.0
  shards = sizes['data'] * sizes['fsdp']
  weights = _bytes(params) * sizes['fsdp'] * width
  if shards > 1:
    network += 2 * weights * (shards - 1) / shards
  if sizes['fsdp'] > 1:
    network += weights * (sizes['fsdp'] - 1) / sizes['fsdp']
  seconds = moved / chip.bandwidth + network / chip.network
  if sizes['fsdp'] > 1:
    seconds += _FSDP_MESSAGES * hardware.LATENCY
  if split > 1:
    hidden = 2 * config.agent.rssm.hidden * agent.dtype.itemsize
    per_row = hidden + 4 * config.agent.rssm.blocks
    starts = config.batch_length * config.agent.imag_length
    sums = _SUMS_PER_STEP * (config.batch_length + config.agent.imag_length)
    sent = 2 * rows * per_row * (config.batch_length + starts)
    seconds += sums * hardware.LATENCY * math.log2(split)
    seconds += 3 * sent / chip.network
  return seconds


def _with_mesh(config: ConfigDict, sizes: tuple[int, ...]) -> ConfigDict:
  changed = copy.deepcopy(config)
  changed.mesh.update(dict(zip(mesh_lib.AXES, sizes, strict=True)))
  return changed


def _bytes(tree: Any) -> float:
  return sum(map(step.shard_bytes, jax.tree.leaves(tree)))
