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
from dreamer_tpu.learner.steps import Steps
from dreamer_tpu.metrics import flops
from dreamer_tpu.metrics.terminal import Terminal
from dreamer_tpu.run import memory, parts
from dreamer_tpu.sharding import mesh as mesh_lib
from dreamer_tpu.tools.plan import hardware, hlo, topology
from dreamer_tpu.tools.plan.acting import ActingPlan, plan_acting

# The compiler's two messages for a program that does not fit.
_USED = re.compile(r'Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm')
_REQUIRED = re.compile(r'\(([\d.]+)([KMGT]?)\) exceeds available HBM')
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdatePlan:
  """Cost of an update on a topology; bytes are per device.

  Attributes:
    topology: Name of the topology.
    chips: Number of chips used.
    devices: Number of JAX devices of these chips, two per chip on TPU7x.
    hosts: Number of hosts of these chips.
    mesh: Devices along each axis.
    batch_size: Rows of the global batch.
    batch_length: Trained steps of a row.
    parameters: Parameters of the whole model.
    arguments: Bytes of state, carry and batch.
    temporaries: Bytes of temporaries and results at the peak of the update.
    peak: Peak memory of the update, or of acting if that has more.
    hbm: Available memory.
    fits: Whether the program fits in memory.
    compile_s: Seconds to compile.
    flops: FLOPs of an update on all devices.
    collectives: Collectives of an update; empty if it does not fit.
    floors: Lower bounds on its time; None if it does not fit.
    replay: Bytes of RAM for the replay of one host.
    acting: Cost of acting on one chip of each host, if environments are there.
  """

  topology: str
  chips: int
  devices: int
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
  acting: ActingPlan | None = None


def make_agent(config: ConfigDict) -> Agent:
  """Makes the agent of a run on TPUs.

  Raises:
    UserError: The task is unknown or its package is missing.
  """
  rules = parts.conversion_rules(config)
  if envs.is_functional(config.task):
    env = envs.make_functional(config.task, 1, config.env, rules=rules)
    obs_space, act_space = env.obs_space, env.act_space
  else:
    obs_space, act_space = envs.spaces(config.task, config.env, rules)
  return Agent(
    parts.agent_spaces(obs_space),
    parts.agent_spaces(act_space),
    config.agent,
    dtype=jnp.dtype(platform.compute_dtype(config.dtype.compute, 'tpu')),
    context=config.replay_context,
  )


def make(
  config: ConfigDict,
  agent: Agent,
  name: str,
  chips: int | None,
  terminal: Terminal,
) -> UpdatePlan:
  """Compiles the update of a run and returns its cost.

  Args:
    config: Configuration of the run.
    agent: Agent from `make_agent`.
    name: Name of the topology.
    chips: Number of chips to use of it; None for all.
    terminal: Shows the stages of the work, which take minutes.

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
  sizes = ' '.join(f'{k}={v}' for k, v in mesh.shape.items())
  with terminal.working(f'Tracing the update on {sizes}'):
    traced = steps.train.trace(*arguments)
    work = flops.count_jaxpr(traced.jaxpr).total
  chip = hardware.CHIPS[name.partition(':')[0]]
  start = time.monotonic()
  with terminal.working(f'Compiling it for {name}'):
    compiled, message = _compile(traced)
  compile_s = time.monotonic() - start
  if compiled:
    figures = _figures(compiled, work / len(devices), chip)
  else:
    figures = _figures_without_fit(message, arguments, chip)
  hosts = len({x.process_index for x in devices})
  with terminal.working('Compiling the program that acts'):
    actor = plan_acting(config, agent, devices[0])
  if actor and config.policy.device == 'shared':
    figures |= _with_acting(figures, actor, chip)
  return UpdatePlan(
    topology=name,
    chips=len(devices) // chip.devices,
    devices=len(devices),
    hosts=hosts,
    mesh=dict(mesh.shape),
    batch_size=config.batch_size,
    batch_length=config.batch_length,
    parameters=sum(x.size for x in jax.tree.leaves(steps.abstract['params'])),
    hbm=chip.hbm,
    compile_s=compile_s,
    flops=work,
    replay=memory.replay_bytes(config, agent, hosts, config.run.steps),
    acting=actor,
    **figures,
  )


def _with_acting(
  figures: dict[str, Any], actor: ActingPlan, chip: hardware.Chip
) -> dict[str, Any]:
  """Returns the peak on the chip that learns and acts, one after the other."""
  peak = max(
    figures['peak'] + actor.resident, figures['arguments'] + actor.peak
  )
  return dict(peak=peak, fits=figures['fits'] and peak <= chip.hbm)


def _compile(traced: Any) -> tuple[Any, str]:
  """Returns the compiled program, or None and a message if it does not fit."""
  try:
    return traced.lower().compile(), ''
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return None, str(error)


def _figures(
  compiled: Any, flops_per_device: float, chip: hardware.Chip
) -> dict[str, Any]:
  stats = compiled.memory_analysis()
  program = hlo.Program(compiled.as_text())
  collectives = program.collectives()
  # The compiler compares the peak with the memory of the chip. Its size of
  # temporaries says less: it exceeds that memory for programs that fit.
  arguments, peak = stats.argument_size_in_bytes, stats.peak_memory_in_bytes
  return dict(
    arguments=arguments,
    temporaries=peak - arguments,
    peak=peak,
    fits=True,
    collectives=collectives,
    floors=hardware.floors(
      chip, flops_per_device, program.hbm_bytes(), collectives
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


def shard_bytes(x: Any) -> float:
  """Returns the bytes of a sharded array or struct on one device."""
  return math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize


def required_bytes(message: str) -> float:
  """Returns the bytes a program needs, from the compiler's error message."""
  match = _USED.search(message) or _REQUIRED.search(message)
  return float(match[1]) * _UNITS[match[2]] if match else 0.0
