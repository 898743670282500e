"""Compiles the train step of a run for chips that need not be there."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dreamer_tpu import envs
from dreamer_tpu.agent import Agent
from dreamer_tpu.cli import platform
from dreamer_tpu.learner.steps import Steps, step_spec
from dreamer_tpu.metrics import flops
from dreamer_tpu.run import setup
from dreamer_tpu.sharding import mesh as mesh_lib
from dreamer_tpu.tools.plan import hardware, hlo, topology

# The two ways in which the compiler says that memory does not suffice.
_USED = re.compile(r'Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm')
_REQUIRED = re.compile(r'\(([\d.]+)([KMGT]?)\) exceeds available HBM')
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What an update costs on some chips; bytes are per chip.

  Attributes:
    topology: Its name.
    chips: How many of it are used.
    hosts: How many hosts they belong to.
    mesh: Chips along every axis.
    batch_size: Rows of the global batch.
    batch_length: Trained steps of a row.
    parameters: Of the whole model.
    arguments: Bytes of state, carry and batch.
    temporaries: Bytes that the update needs besides.
    peak: Bytes in use at the worst moment of the update, all in all.
    hbm: Bytes there are.
    fits: Whether the compiler could place the program.
    compile_s: Seconds to compile.
    flops: Per update, over all chips.
    collectives: Of an update; empty if it does not fit.
    floors: Seconds; None if it does not fit.
    replay: Bytes of RAM per host.
  """

  topology: str
  chips: int
  hosts: int
  mesh: dict[str, int]
  batch_size: int
  batch_length: int
  parameters: int
  arguments: float
  temporaries: float
  peak: float
  hbm: float
  fits: bool
  compile_s: float
  flops: float
  collectives: list[hlo.Collective]
  floors: hardware.Floors | None
  replay: float


def make_agent(config: ConfigDict) -> Agent:
  """The agent of a run on TPUs.

  Raises:
    UserError: As `envs.spaces`, of an unknown task or missing package.
  """
  obs_space, act_space = envs.spaces(config.task, config.env)
  return Agent(
    setup.agent_spaces(obs_space),
    setup.agent_spaces(act_space),
    config.agent,
    dtype=jnp.dtype(platform.compute_dtype(config.dtype.compute, 'tpu')),
    context=config.replay_context,
  )


def make(
  config: ConfigDict, agent: Agent, name: str, chips: int | None = None
) -> Plan:
  """Compiles the update of a run and reads off what it costs.

  Args:
    config: Of the run.
    agent: From `make_agent`.
    name: Of the topology.
    chips: Uses only the first so many chips of it.

  Raises:
    UserError: No such topology, or a mesh or batch that does not divide.
  """
  devices = topology.devices(name, chips)
  mesh = mesh_lib.make(config.mesh, devices)
  mesh_lib.check_batch(mesh, config.batch_size)
  chip = hardware.CHIPS[name.partition(':')[0]]
  steps = Steps(
    agent, mesh, config.sharding.rules, batch_size=config.batch_size
  )
  arguments = steps.train_arguments(config.batch_length)
  traced = steps.train.trace(*arguments)
  work = flops.count_jaxpr(traced.jaxpr).total
  hosts = len({x.process_index for x in devices})
  common: dict[str, Any] = dict(
    topology=name,
    chips=len(devices),
    hosts=hosts,
    mesh=dict(mesh.shape),
    batch_size=config.batch_size,
    batch_length=config.batch_length,
    parameters=sum(x.size for x in jax.tree.leaves(steps.abstract['params'])),
    hbm=chip.hbm,
    flops=work,
    replay=replay_bytes(config, agent) / hosts,
  )
  given = sum(map(shard_bytes, jax.tree.leaves(arguments)))
  start = time.monotonic()
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    peak = max(needed(str(error)), chip.hbm)
    return Plan(
      **common,
      compile_s=time.monotonic() - start,
      arguments=given,
      temporaries=peak - given,
      peak=peak,
      fits=False,
      collectives=[],
      floors=None,
    )
  seconds = time.monotonic() - start
  stats = compiled.memory_analysis()
  program = hlo.Program(compiled.as_text())
  sends = program.collectives()
  return Plan(
    **common,
    compile_s=seconds,
    arguments=stats.argument_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    peak=stats.peak_memory_in_bytes,
    fits=True,
    collectives=sends,
    floors=hardware.floors(
      chip, work / len(devices), program.hbm_bytes(), sends
    ),
  )


def replay_bytes(config: ConfigDict, agent: Agent) -> float:
  """RAM of a full replay, over all hosts."""
  per_step = sum(
    math.prod(shape) * jnp.dtype(dtype).itemsize
    for shape, dtype in step_spec(agent).values()
  )
  return per_step * min(config.replay.size, config.run.steps)


def shard_bytes(x: Any) -> float:
  """Bytes of an array, or its ShapeDtypeStruct, on one of its devices."""
  return math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize


def needed(message: str) -> float:
  """The bytes that the compiler could not place, from what it says."""
  match = _USED.search(message) or _REQUIRED.search(message)
  return float(match[1]) * _UNITS[match[2]] if match else 0.0
