"""Makes environments, actor, agent, learner and replay of a configuration."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from dreamer_tpu import envs
from dreamer_tpu.actor.actor import Actor, Arrays
from dreamer_tpu.actor.unrolled import UnrolledActor
from dreamer_tpu.agent import Agent, Space
from dreamer_tpu.cli import platform
from dreamer_tpu.config import sequence_length
from dreamer_tpu.envs import (
  Conversion,
  Rules,
  VectorEnv,
  functional,
  make_rules,
  make_vector,
)
from dreamer_tpu.envs.observations import LOG
from dreamer_tpu.envs.restarting import Restarts
from dreamer_tpu.errors import UserError
from dreamer_tpu.learner.acting import PolicyStep
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.learner.steps import step_spec
from dreamer_tpu.replay import Replay
from dreamer_tpu.run import memory
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
  """Returns an independent 31-bit seed for a stream of random numbers."""
  sequence = np.random.SeedSequence([config.seed, *stream])
  return int(sequence.generate_state(1)[0] >> 1)


@contextlib.contextmanager
def training_envs(
  config: ConfigDict, step: int, stop: Callable[[], bool] = lambda: False
) -> Iterator[VectorEnv | functional.Vector]:
  """Makes the environments that this host acts in, and closes them.

  Args:
    config: Configuration of the run.
    step: Agent steps at the start, which seed the environments.
    stop: Returns whether the run was asked to stop.

  Raises:
    UserError: As `envs.make_vector`; or env.unroll does not fit the task.
  """
  if envs.is_functional(config.task):
    yield envs.make_functional(
      config.task,
      config.run.envs,
      config.env,
      rules=conversion_rules(config),
      first=_first_env(config),
    )
    return
  if config.env.unroll > 1:
    raise UserError(
      f'env.unroll={config.env.unroll} is for environments that are JAX '
      f'functions; those of task {config.task} take one step at a time: use '
      '--config.env.unroll=1.'
    )
  with contextlib.closing(make_envs(config, step, stop)) as env:
    yield env


def make_actor(
  config: ConfigDict,
  env: VectorEnv | functional.Vector,
  policy: PolicyStep,
  replay: Replay,
  step: int = 0,
) -> tuple[Actor | UnrolledActor, Callable[[Arrays], None]]:
  """Makes the actor of this host.

  Args:
    config: Configuration of the run.
    env: Environments of `training_envs`.
    policy: The policy.
    replay: Replay of their steps.
    step: Agent steps at the start, which seed the environments.

  Returns:
    The actor, and the function that stores its steps.
  """
  if not isinstance(env, functional.Vector):
    return Actor(env, policy), replay.add
  start = seed(config, ENVS, step, jax.process_index())
  keys = functional.keys(start, env.num_envs)
  restarts = Restarts(config.task, env.num_envs, config.env.restarts)
  actor = UnrolledActor(env, policy, keys, config.env.unroll, restarts)
  return actor, replay.extend


def make_envs(
  config: ConfigDict,
  step: int,
  stop: Callable[[], bool] = lambda: False,
  *,
  evaluate: bool = False,
  rules: Rules | None = None,
) -> VectorEnv:
  """Makes the environments of this host.

  Args:
    config: Configuration of the run.
    step: Agent steps at the start, which seed the environments.
    stop: Returns whether the run was asked to stop.
    evaluate: Whether they are for evaluation.
    rules: Options of the conversion of spaces, by default those of `config`.
  """
  stream = EVAL_ENVS if evaluate else ENVS
  first = _first_env(config) + (config.run.envs if evaluate else 0)
  return make_vector(
    config.task,
    config.run.eval_envs if evaluate else config.run.envs,
    seed(config, stream, step, jax.process_index()),
    config.env,
    stop,
    rules=rules or conversion_rules(config),
    role='eval' if evaluate else 'train',
    first=first,
    # Process 0 writes the videos.
    render=evaluate and config.run.eval_video and not jax.process_index(),
  )


def _first_env(config: ConfigDict) -> int:
  """Returns the number of this host's first environment."""
  return (config.run.envs + config.run.eval_envs) * jax.process_index()


def check_environment(
  config: ConfigDict, stop: Callable[[], bool], log: Callable[[str], None]
) -> None:
  """Shows the complaints of Gymnasium's checker, if `env.check` is set."""
  if not config.env.check or jax.process_index():
    return
  complaints = envs.check(config.task, config.env, stop)
  for text in complaints:
    logging.warning("Task %s, Gymnasium's checker: %s", config.task, text)
  if not complaints:
    log(f"Gymnasium's checker has no complaints about {config.task}.")


def conversion_rules(config: ConfigDict) -> Rules:
  """Returns the options of the conversion of spaces."""
  stages = len(config.agent.encoder.mults)
  return make_rules(config.task, config.env, stages)


def agent_spaces(spaces: Mapping[str, gymnasium.Space]) -> dict[str, Space]:
  """Converts normalized Gymnasium spaces to those of the agent."""
  seen = {k: v for k, v in spaces.items() if not k.startswith(LOG)}
  return {k: _agent_space(v) for k, v in seen.items()}


def _agent_space(space: gymnasium.Space) -> Space:
  shape, dtype = tuple(space.shape or ()), np.dtype(space.dtype).name
  if isinstance(space, gymnasium.spaces.Discrete):
    return Space(shape=shape, dtype=dtype, classes=int(space.n))
  if isinstance(space, gymnasium.spaces.MultiDiscrete):
    return Space(shape=shape, dtype=dtype, classes=int(space.nvec.max()))
  return Space(shape=shape, dtype=dtype)


def compute_dtype(config: ConfigDict) -> jnp.dtype:
  """Returns `dtype.compute`; 'auto' is bfloat16, but float32 on CPU."""
  backend = jax.default_backend()
  return jnp.dtype(platform.compute_dtype(config.dtype.compute, backend))


def make_agent(
  config: ConfigDict, env: VectorEnv | functional.Vector | Conversion
) -> Agent:
  """Makes the agent for the spaces of an environment."""
  return Agent(
    agent_spaces(env.obs_space),
    agent_spaces(env.act_space),
    config.agent,
    dtype=compute_dtype(config),
    context=config.replay_context,
  )


def make_learner(config: ConfigDict, agent: Agent) -> Learner:
  """Makes the learner on its devices, without a state."""
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
  """Returns the learner's devices on all hosts, and this host's for acting.

  Raises:
    UserError: There is no device to reserve.
  """
  where = config.policy.device
  if where == 'cpu':
    return jax.devices(), jax.local_devices(backend='cpu')[0]
  if where == 'shared':
    return jax.devices(), jax.local_devices()[0]
  if jax.local_device_count() == 1:
    raise UserError(
      "policy.device='reserved' reserves one device per host for acting, but "
      'this host has only one; use --config.policy.device=shared.'
    )
  last = {device.process_index: device for device in jax.devices()}
  learning = [x for x in jax.devices() if x != last[x.process_index]]
  return learning, last[jax.process_index()]


def make_policy(
  config: ConfigDict, agent: Agent, envs: int, *, evaluate: bool = False
) -> PolicyStep:
  """Makes the policy step for some environments of this host."""
  stream = EVAL_ACTING if evaluate else ACTING
  return PolicyStep(
    agent,
    envs,
    seed=seed(config, stream, jax.process_index()),
    mode=config.policy.eval_mode if evaluate else config.policy.mode,
    device=devices(config)[1],
  )


def make_replay(
  config: ConfigDict, agent: Agent, streams: int, *, evaluate: bool = False
) -> Replay:
  """Makes this host's shard of a replay, empty.

  Args:
    config: Configuration of the run.
    agent: Agent whose inputs and latents it stores.
    streams: Environments of this host.
    evaluate: Whether it is the smaller one for evaluation.
  """
  stream = EVAL_REPLAY if evaluate else REPLAY
  return Replay(
    step_spec(agent),
    length=sequence_length(config),
    capacity=memory.capacity(config, jax.process_count(), evaluate=evaluate),
    chunksize=config.replay.chunksize,
    online=config.replay.online and not evaluate,
    streams=streams,
    seed=seed(config, stream, jax.process_index()),
    shard=jax.process_index(),
    sampling=memory.sampling(config),
    keep_imported=config.replay.keep_imported,
  )
