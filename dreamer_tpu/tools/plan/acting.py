"""Compiles the program that acts in functional environments for a chip."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from dreamer_tpu import envs
from dreamer_tpu.actor.unrolled import Unroll
from dreamer_tpu.agent import Agent
from dreamer_tpu.learner.acting import PolicyFunction
from dreamer_tpu.run import parts
from dreamer_tpu.tools.plan import hlo


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActingPlan:
  """Cost of K steps of N environments and the policy on one chip, in bytes.

  Attributes:
    unroll: Number K of steps.
    envs: Number N of environments.
    resident: Weights, state of the environments, and steps that are not stored
      yet, which are there during an update.
    peak: Peak memory of the program, with the previous steps.
    hbm_per_step: HBM traffic per step of all environments, as if an episode
      ended in each.
    collectives: Number of collectives.
  """

  unroll: int
  envs: int
  resident: float
  peak: float
  hbm_per_step: float
  collectives: int


def plan_acting(
  config: ConfigDict, agent: Agent, device: Any
) -> ActingPlan | None:
  """Compiles the program and returns its cost.

  Args:
    config: Configuration of the run.
    agent: Agent of the run.
    device: Chip of a topology.

  Returns:
    None if no chip acts in functional environments.
  """
  functional = envs.is_functional(config.task)
  if not functional or config.policy.device == 'cpu':
    return None
  unroll, arguments = _program(config, agent)
  sharding = SingleDeviceSharding(device)
  arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    arguments,
  )
  run = jax.jit(unroll.run, donate_argnums=1)
  compiled: Any = run.lower(*arguments).compile()
  stats = compiled.memory_analysis()
  program = hlo.Program(compiled.as_text())
  steps = stats.output_size_in_bytes - stats.alias_size_in_bytes
  length = config.env.unroll
  return ActingPlan(
    unroll=length,
    envs=config.run.envs,
    resident=stats.argument_size_in_bytes + steps,
    peak=stats.peak_memory_in_bytes + steps,
    hbm_per_step=program.hbm_bytes() / length,
    collectives=len(program.collectives()),
  )


def _program(config: ConfigDict, agent: Agent) -> tuple[Unroll, Any]:
  """Returns the program and its arguments as ShapeDtypeStructs."""
  env = envs.make_functional(
    config.task,
    config.run.envs,
    config.env,
    rules=parts.conversion_rules(config),
  )
  policy = PolicyFunction(
    agent=agent, envs=env.num_envs, mode=config.policy.mode, platform='tpu'
  )
  unroll = Unroll(env, policy, config.env.unroll)
  keys = jax.ShapeDtypeStruct((env.num_envs, 2), np.uint32)
  state = jax.eval_shape(agent.init, jax.random.key(0))
  weights = {
    name: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, agent.dtype),
      state['params'][name],
    )
    for name in ('encoder', 'rssm', 'policy')
  }
  number = jax.ShapeDtypeStruct((), np.uint32)
  carry = jax.eval_shape(unroll.start, keys)
  return unroll, (weights, carry, number, number)
