"""The parts of a run, made from its configuration."""

from collections.abc import Mapping

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dreamer_tpu.agent import Agent, Space
from dreamer_tpu.cli import validate
from dreamer_tpu.envs import VectorEnv, make_vector
from dreamer_tpu.errors import UserError
from dreamer_tpu.learner.acting import PolicyStep
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.learner.steps import step_spec
from dreamer_tpu.replay import Replay, Sampling
from dreamer_tpu.sharding import mesh as mesh_lib

# Streams of random numbers besides the learner's, all from one seed.
(
  ENVS,
  ACTING,
  REPLAY,
  REPORT,
  EVAL_ENVS,
  EVAL_ACTING,
  EVAL_REPLAY,
  EVAL_REPORT,
) = range(100, 108)


def seed(config: ConfigDict, *stream: int) -> int:
  """An independent seed of 31 bits for each stream of random numbers."""
  sequence = np.random.SeedSequence([config.seed, *stream])
  return int(sequence.generate_state(1)[0] >> 1)


def environments(config: ConfigDict, step: int) -> VectorEnv:
  """This host's environments, seeded anew for the step a run starts at."""
  return make_vector(
    config.task,
    config.run.envs,
    seed(config, ENVS, step, jax.process_index()),
    config.env,
  )


def eval_environments(config: ConfigDict, step: int) -> VectorEnv:
  """This host's evaluation environments, seeded anew for a step."""
  return make_vector(
    config.task,
    config.run.eval_envs,
    seed(config, EVAL_ENVS, step, jax.process_index()),
    config.env,
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
  """The learner on its devices; its state is not yet there."""
  mesh = mesh_lib.make(config.mesh, devices(config)[0])
  mesh_lib.check_batch(mesh, config.batch_size)
  return Learner(
    agent,
    mesh,
    config.sharding.rules,
    batch_size=config.batch_size,
    seed=config.seed,
    report_grads=config.run.report_grads,
  )


def devices(config: ConfigDict) -> tuple[list[jax.Device], jax.Device]:
  """The devices that learn, of all hosts, and this host's one that acts.

  Raises:
    UserError: There is none to reserve.
  """
  where = config.policy.device
  if where == 'cpu':
    return jax.devices(), jax.local_devices(backend='cpu')[0]
  if where == 'shared':
    return jax.devices(), jax.local_devices()[0]
  if jax.local_device_count() == 1:
    raise UserError(
      "policy.device='reserved' keeps one device of every host for acting, and "
      'this host has only one; use --config.policy.device=shared.'
    )
  last = {device.process_index: device for device in jax.devices()}
  learning = [x for x in jax.devices() if x != last[x.process_index]]
  return learning, last[jax.process_index()]


def local_rows(config: ConfigDict) -> int:
  """Rows of the global batch that this host supplies."""
  return config.batch_size // jax.process_count()


def policy(
  config: ConfigDict, agent: Agent, envs: int, *, stream: int, mode: str
) -> PolicyStep:
  """The policy step for some environments of this host."""
  return PolicyStep(
    agent,
    envs,
    seed=seed(config, stream, jax.process_index()),
    mode=mode,
    device=devices(config)[1],
  )


def replay(
  config: ConfigDict,
  agent: Agent,
  streams: int,
  *,
  capacity: int,
  online: bool,
  stream: int,
) -> Replay:
  """This host's empty shard of a replay.

  Args:
    config: Of the run.
    agent: Whose latents it stores.
    streams: Environments of this host.
    capacity: Steps over all hosts.
    online: Whether every new sequence is sampled soon.
    stream: Of random numbers.
  """
  return Replay(
    step_spec(agent),
    length=validate.sequence_length(config),
    capacity=capacity // jax.process_count(),
    chunksize=config.replay.chunksize,
    online=online,
    streams=streams,
    seed=seed(config, stream, jax.process_index()),
    shard=jax.process_index(),
    sampling=Sampling(
      **config.replay.fracs, **config.replay.prio, recexp=config.replay.recexp
    ),
  )
