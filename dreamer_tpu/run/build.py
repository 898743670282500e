"""The parts of a run, made from its configuration."""

from collections.abc import Mapping

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dreamer_tpu.agent import Agent, Space
from dreamer_tpu.envs import VectorEnv, make_vector
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.learner.steps import step_spec
from dreamer_tpu.replay import Replay
from dreamer_tpu.run import validate
from dreamer_tpu.sharding import mesh as mesh_lib

# Streams of random numbers besides the learner's, all from one seed.
ENVS, ACTING, REPLAY, REPORT, EVAL_ENVS, EVAL_ACTING = range(100, 106)


def seed(config: ConfigDict, *stream: int) -> int:
  """An independent seed of 31 bits for each stream of random numbers."""
  sequence = np.random.SeedSequence([config.seed, *stream])
  return int(sequence.generate_state(1)[0] >> 1)


def environments(config: ConfigDict, step: int) -> VectorEnv:
  """The training environments, seeded anew for the step a run starts at."""
  return make_vector(
    config.task, config.run.envs, seed(config, ENVS, step), config.env
  )


def eval_environments(config: ConfigDict, step: int) -> VectorEnv:
  """The evaluation environments, seeded anew for the step of the agent."""
  return make_vector(
    config.task, config.run.eval_envs, seed(config, EVAL_ENVS, step), config.env
  )


def agent_spaces(spaces: Mapping[str, gymnasium.Space]) -> dict[str, Space]:
  """The agent's view of normalized Gymnasium spaces."""
  return {k: _agent_space(v) for k, v in spaces.items()}


def _agent_space(space: gymnasium.Space) -> Space:
  shape, dtype = tuple(space.shape or ()), np.dtype(space.dtype).name
  if isinstance(space, gymnasium.spaces.Discrete):
    return Space(shape=shape, dtype=dtype, classes=int(space.n))
  if isinstance(space, gymnasium.spaces.MultiDiscrete):
    return Space(shape=shape, dtype=dtype, classes=int(space.nvec.max()))
  return Space(shape=shape, dtype=dtype)


def compute_dtype(config: ConfigDict) -> jnp.dtype:
  """`dtype.compute`; 'auto' is bfloat16 on accelerators, float32 on CPU."""
  name = config.dtype.compute
  if name == 'auto':
    name = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  return jnp.dtype(name)


def agent(config: ConfigDict, env: VectorEnv) -> Agent:
  """The agent for the spaces of an environment."""
  return Agent(
    agent_spaces(env.obs_space),
    agent_spaces(env.act_space),
    config.agent,
    dtype=compute_dtype(config),
    context=config.replay_context,
  )


def learner(config: ConfigDict, agent: Agent) -> Learner:
  """The learner on all devices; its state is not yet there."""
  mesh = mesh_lib.make(config.mesh)
  mesh_lib.check_batch(mesh, config.batch_size)
  return Learner(
    agent,
    mesh,
    config.sharding.rules,
    batch_size=config.batch_size,
    seed=config.seed,
    report_grads=config.run.report_grads,
  )


def replay(config: ConfigDict, agent: Agent, streams: int) -> Replay:
  """An empty replay for what `streams` environments and the policy produce."""
  return Replay(
    step_spec(agent),
    length=validate.sequence_length(config),
    capacity=config.replay.size,
    chunksize=config.replay.chunksize,
    online=config.replay.online,
    streams=streams,
    seed=seed(config, REPLAY),
  )
