"""Compiles the train step of a run for a TPU topology."""

import dataclasses
import math
import re
import time
from collections.abc import Sequence
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

# The compiler's two messages for a program that does not fit.
_USED = re.compile(r'Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm')
_REQUIRED = re.compile(r'\(([\d.]+)([KMGT]?)\) exceeds available HBM')
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdatePlan:
  """Cost of an update on a topology; bytes are per chip.

  Attributes:
    topology: Name of the topology.
    chips: Number of chips used.
    hosts: Number of hosts of these chips.
    mesh: Chips along each axis.
    batch_size: Rows of the global batch.
    batch_length: Trained steps of a row.
    parameters: Parameters of the whole model.
    arguments: Bytes of state, carry and batch.
    temporaries: Bytes of temporaries.
    peak: Peak memory of the update.
    hbm: Available memory.
    fits: Whether the program fits in memory.
    compile_s: Seconds to compile.
    flops: FLOPs of an update on all chips.
    collectives: Collectives of an update; empty if it does not fit.
    floors: Lower bounds on its time; None if it does not fit.
    replay: Bytes of RAM for the replay of one host.
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
  collectives: Sequence[hlo.Collective]
  floors: hardware.Floors | None
  replay: float


def make_agent(config: ConfigDict) -> Agent:
  """Makes the agent of a run on TPUs.

  Raises:
    UserError: The task is unknown or its package is missing.
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
) -> UpdatePlan:
  """Compiles the update of a run and returns its cost.

  Args:
    config: Configuration of the run.
    agent: Agent from `make_agent`.
    name: Name of the topology.
    chips: Number of chips to use of it; all by default.

  Raises:
    UserError: The topology is unknown, or mesh or batch do not divide.
  """
  devices = topology.devices(name, chips)
  mesh = mesh_lib.make(config.mesh, devices)
  mesh_lib.check_batch(mesh, config.batch_size)
  steps = Steps(
    agent, mesh, config.sharding.rules, batch_size=config.batch_size
  )
  arguments = steps.train_arguments(config.batch_length)
  traced = steps.train.trace(*arguments)
  work = flops.count_jaxpr(traced.jaxpr).total
  chip = hardware.CHIPS[name.partition(':')[0]]
  start = time.monotonic()
  compiled, message = _compile(traced)
  compile_s = time.monotonic() - start
  if compiled:
    figures = _figures(compiled, work / len(devices), chip)
  else:
    figures = _figures_without_fit(message, arguments, chip)
  hosts = len({x.process_index for x in devices})
  return UpdatePlan(
    topology=name,
    chips=len(devices),
    hosts=hosts,
    mesh=dict(mesh.shape),
    batch_size=config.batch_size,
    batch_length=config.batch_length,
    parameters=sum(x.size for x in jax.tree.leaves(steps.abstract['params'])),
    hbm=chip.hbm,
    compile_s=compile_s,
    flops=work,
    replay=replay_bytes(config, agent) / hosts,
    **figures,
  )


def _compile(traced: Any) -> tuple[Any, str]:
  """Returns the compiled program, or None and a message if it does not fit."""
  try:
    return traced.lower().compile(), ''
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return None, str(error)


def _figures(
  compiled: Any, flops_per_chip: float, chip: hardware.Chip
) -> dict[str, Any]:
  stats = compiled.memory_analysis()
  program = hlo.Program(compiled.as_text())
  collectives = program.collectives()
  return dict(
    arguments=stats.argument_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    peak=stats.peak_memory_in_bytes,
    fits=True,
    collectives=collectives,
    floors=hardware.floors(
      chip, flops_per_chip, program.hbm_bytes(), collectives
    ),
  )


def _figures_without_fit(
  message: str, arguments: Any, chip: hardware.Chip
) -> dict[str, Any]:
  peak = max(required_bytes(message), chip.hbm)
  size = sum(map(shard_bytes, jax.tree.leaves(arguments)))
  return dict(
    arguments=size,
    temporaries=peak - size,
    peak=peak,
    fits=False,
    collectives=[],
    floors=None,
  )


def replay_bytes(config: ConfigDict, agent: Agent) -> float:
  """Returns the RAM of a full replay over all hosts, in bytes."""
  per_step = sum(
    math.prod(shape) * jnp.dtype(dtype).itemsize
    for shape, dtype in step_spec(agent).values()
  )
  return per_step * min(config.replay.size, config.run.steps)


def shard_bytes(x: Any) -> float:
  """Returns the bytes of a sharded array or struct on one device."""
  return math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize


def required_bytes(message: str) -> float:
  """Returns the bytes a program needs, from the compiler's error message."""
  match = _USED.search(message) or _REQUIRED.search(message)
  return float(match[1]) * _UNITS[match[2]] if match else 0.0
