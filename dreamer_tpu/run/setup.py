"""Makes the parts of a run from its configuration."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from dreamer_tpu.actor.actor import Actor
from dreamer_tpu.agent import Agent, Space
from dreamer_tpu.checkpoint import layout
from dreamer_tpu.checkpoint.shard import LOCAL
from dreamer_tpu.cli import logdirs, platform
from dreamer_tpu.config import sequence_length
from dreamer_tpu.envs import VectorEnv, make_vector
from dreamer_tpu.errors import UserError
from dreamer_tpu.hosts.heartbeat import Heartbeat
from dreamer_tpu.hosts.preemption import Preemption
from dreamer_tpu.hosts.sync import HostSync
from dreamer_tpu.learner.acting import PolicyStep
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.learner.publishing import Publisher
from dreamer_tpu.learner.steps import step_spec
from dreamer_tpu.metrics.profiler import Profiler
from dreamer_tpu.metrics.terminal import Terminal
from dreamer_tpu.metrics.timer import Timer
from dreamer_tpu.metrics.writers import Writers
from dreamer_tpu.replay import Replay, Sampling, Stream
from dreamer_tpu.run.logger import Logger
from dreamer_tpu.run.progress import Progress
from dreamer_tpu.run.report import Evaluator, Reporter
from dreamer_tpu.run.saving import Saver
from dreamer_tpu.run.time_limit import TimeLimited
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

# Capacity of the evaluation replay, relative to that of training.
_EVAL_CAPACITY = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """Parts of a training run on this host."""

  actor: Actor
  replay: Replay
  stream: Stream
  learner: Learner
  publisher: Publisher
  policy: PolicyStep
  reporter: Reporter
  evaluator: Evaluator | None
  saver: Saver
  logger: Logger
  progress: Progress
  sync: HostSync
  preemption: Preemption
  profiler: Profiler
  timer: Timer
  terminal: Terminal

  @property
  def score(self) -> float | None:
    """Mean score of the last evaluation."""
    return self.evaluator.score if self.evaluator else None

  def state(self) -> dict[str, Any]:
    """Returns the state that all hosts share, as JSON values."""
    return {
      **self.progress.state(),
      'policy_steps': self.policy.steps,
      'averages': self.logger.averages.state(),
      'timer': self.timer.state(),
    }

  def stream_states(self) -> dict[str, Any]:
    """Returns the states of this host's streams of batches."""
    return {name: x.state() for name, x in self._streams().items()}

  def load(self, saved: dict[str, Any]) -> None:
    """Resumes from `state` and `stream_states` of a checkpoint."""
    self.policy.steps = saved['policy_steps']
    self.logger.averages.load(saved.get('averages', {}))
    streams = self._streams()
    for name, state in saved.get(LOCAL, {}).items():
      if name in streams and state:
        streams[name].load(state)

  def _streams(self) -> dict[str, Stream]:
    streams = {'stream': self.stream, 'report': self.reporter.stream}
    if self.evaluator:
      streams['eval'] = self.evaluator.reporter.stream
    return streams


@contextlib.contextmanager
def make(
  config: ConfigDict, logdir: epath.Path, *, with_eval: bool = False
) -> Iterator[Run]:
  """Makes the parts of a training run, restored from the logdir if it has one.

  Args:
    config: Merged and validated configuration.
    logdir: Directory of the run, shared by all hosts.
    with_eval: Whether to make an evaluator.

  Raises:
    UserError: The configuration, the environment or the logdir do not fit.
  """
  timer, sync = Timer(), HostSync()
  hosts, index = jax.process_count(), jax.process_index()
  outputs = () if index else config.metrics.outputs
  terminal = Terminal(enabled='log' in outputs)
  step = max(layout.steps(logdir / 'checkpoints'), default=0)
  with contextlib.ExitStack() as stack:
    enter = stack.enter_context
    heartbeat = enter(Heartbeat(config.distributed, sync))
    preemption = enter(Preemption(terminal.log_status))

    where = f' on each of {hosts} hosts' if hosts > 1 else ''
    terminal.log_status(
      f'Starting {config.run.envs} environments of {config.task}{where}.'
    )
    env = TimeLimited(make_envs(config, step), heartbeat, config)
    enter(contextlib.closing(env))
    agent = make_agent(config, env)
    policy = make_policy(config, agent, env.num_envs)
    replay = make_replay(config, agent, env.num_envs)
    learner = make_learner(config, agent)
    publisher = Publisher(learner, policy, config.policy.publish_every)
    evaluator = None
    if with_eval:
      eval_env = make_envs(config, step, evaluate=True)
      eval_env = TimeLimited(eval_env, heartbeat, config)
      enter(contextlib.closing(eval_env))
      eval_replay = make_replay(config, agent, eval_env.num_envs, evaluate=True)
      eval_seed = seed(config, EVAL_REPORT, step, index)
      evaluator = Evaluator(
        env=eval_env,
        policy=make_policy(config, agent, eval_env.num_envs, evaluate=True),
        replay=eval_replay,
        reporter=Reporter(config, learner, eval_replay, seed=eval_seed),
        sync=sync,
        preemption=preemption,
        count=len(range(index, config.run.eval_eps, hosts)),
      )

    replays = [replay, evaluator.replay] if evaluator else [replay]
    saver = enter(Saver(config, logdir, learner, *replays))
    saved = saver.load_or_init(terminal.log_status, sync.gather)
    if index == 0:
      logdirs.save_config(config, logdir)
    counts = learner.parameter_counts()
    modules = ', '.join(f'{name} {count:,}' for name, count in counts.items())
    terminal.log_status(
      f'The agent has {sum(counts.values()):,} parameters: {modules}.'
    )
    start, values = saved.get('step', 0), config.to_dict()
    writers = enter(
      Writers(logdir, outputs, values, resume_step=start, terminal=terminal)
    )
    timer.resume(saved.get('timer', {}))
    progress = Progress(config, sync, replay, env.num_envs, saved)
    run = Run(
      actor=Actor(env, policy),
      replay=replay,
      stream=Stream(
        replay,
        batch=config.batch_size // hosts,
        length=config.batch_length,
        consec=config.consec_train,
        context=config.replay_context,
      ),
      learner=learner,
      publisher=publisher,
      policy=policy,
      reporter=Reporter(
        config,
        learner,
        replay,
        seed=seed(config, REPORT, step, index),
        prefix='report/',
      ),
      evaluator=evaluator,
      saver=saver,
      logger=Logger(
        config=config,
        logdir=str(logdir),
        writers=writers,
        timer=timer,
        sync=sync,
        learner=learner,
        replay=replay,
        publisher=publisher,
        progress=progress,
        repeat=env.repeat,
      ),
      progress=progress,
      sync=sync,
      preemption=preemption,
      profiler=enter(Profiler(config.run.profile, logdir, terminal.log_status)),
      timer=timer,
      terminal=terminal,
    )
    if saved:
      run.load(saved)
    _start(run)
    yield run


def _start(run: Run) -> None:
  """Publishes the first weights, and checks whether training can begin."""
  progress = run.progress
  progress.ready = all(run.sync.gather(progress.filled))
  with run.timer.section('publishing'):
    run.publisher(progress.update)
  if progress.ready or not progress.running:
    return
  if progress.offline:
    raise UserError(
      f'run.updates={progress.max_update} trains on the replay of the logdir, '
      f'which must hold at least {progress.needed:,} sequences on every host; '
      f'this one has {len(run.replay):,}. First collect data with '
      'run.updates=0.'
    )
  needed = progress.needed * jax.process_count()
  run.terminal.log_status(f'Filling the replay with {needed:,} sequences.')


def seed(config: ConfigDict, *stream: int) -> int:
  """Returns an independent 31-bit seed for a stream of random numbers."""
  sequence = np.random.SeedSequence([config.seed, *stream])
  return int(sequence.generate_state(1)[0] >> 1)


def make_envs(
  config: ConfigDict, step: int, *, evaluate: bool = False
) -> VectorEnv:
  """Makes the environments of this host.

  Args:
    config: Configuration of the run.
    step: Agent steps at the start, which seed the environments.
    evaluate: Whether they are for evaluation.
  """
  stream = EVAL_ENVS if evaluate else ENVS
  return make_vector(
    config.task,
    config.run.eval_envs if evaluate else config.run.envs,
    seed(config, stream, step, jax.process_index()),
    config.env,
  )


def agent_spaces(spaces: Mapping[str, gymnasium.Space]) -> dict[str, Space]:
  """Converts normalized Gymnasium spaces to those of the agent."""
  return {k: _agent_space(v) for k, v in spaces.items()}


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


def make_agent(config: ConfigDict, env: VectorEnv) -> Agent:
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
  share = _EVAL_CAPACITY if evaluate else 1
  stream = EVAL_REPLAY if evaluate else REPLAY
  return Replay(
    step_spec(agent),
    length=sequence_length(config),
    capacity=int(config.replay.size * share) // jax.process_count(),
    chunksize=config.replay.chunksize,
    online=config.replay.online and not evaluate,
    streams=streams,
    seed=seed(config, stream, jax.process_index()),
    shard=jax.process_index(),
    sampling=Sampling(
      **config.replay.fracs, **config.replay.prio, recexp=config.replay.recexp
    ),
  )
