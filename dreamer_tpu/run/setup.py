"""Puts a training run together: its parts, restored from the log directory."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

import dreamer_tpu
from dreamer_tpu.actor.actor import Actor, Arrays
from dreamer_tpu.actor.unrolled import UnrolledActor
from dreamer_tpu.agent import Agent
from dreamer_tpu.checkpoint import layout
from dreamer_tpu.checkpoint.restore import config_changes
from dreamer_tpu.checkpoint.shard import LOCAL
from dreamer_tpu.cli import logdirs, platform
from dreamer_tpu.envs import (
  VectorEnv,
  functional,
)
from dreamer_tpu.errors import UserError
from dreamer_tpu.hosts.preemption import Preemption
from dreamer_tpu.hosts.sync import HostSync
from dreamer_tpu.learner.acting import PolicyStep
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.learner.publishing import Publisher
from dreamer_tpu.metrics.profiler import Profiler
from dreamer_tpu.metrics.terminal import Terminal
from dreamer_tpu.metrics.timer import Timer
from dreamer_tpu.metrics.writers import Writers, check_installed
from dreamer_tpu.replay import Replay, Stream
from dreamer_tpu.run import memory, parts
from dreamer_tpu.run.logger import Logger
from dreamer_tpu.run.progress import Progress
from dreamer_tpu.run.ratio import describe_pace, same_pace
from dreamer_tpu.run.report import Evaluator, Reporter
from dreamer_tpu.run.saving import Saver, check_start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """Parts of a training run on this host.

  Attributes:
    resumed: Whether the run was restored from a checkpoint.
    store: Adds the steps of the actor to the replay.
  """

  resumed: bool
  actor: Actor | UnrolledActor
  store: Callable[[Arrays], None]
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
  config: ConfigDict,
  logdir: epath.Path,
  preemption: Preemption | None = None,
  *,
  with_eval: bool = False,
) -> Iterator[Run]:
  """Makes the parts of a training run, restored from the logdir if it has one.

  Args:
    config: Merged and validated configuration.
    logdir: Directory of the run, shared by all hosts.
    preemption: Stop requests, if the caller already handles signals.
    with_eval: Whether to make an evaluator.

  Raises:
    UserError: The configuration, the environment or the logdir do not fit.
  """
  timer, sync, index = Timer(), HostSync(), jax.process_index()
  outputs = () if index else config.metrics.outputs
  check_installed(outputs)
  terminal = Terminal(enabled='log' in outputs)
  terminal.format_warnings()
  terminal.log_status(f'This is {platform.versions()}.')
  checkpoints = logdir / 'checkpoints'
  step = max(layout.steps(checkpoints), default=0)
  with contextlib.ExitStack() as stack:
    enter = stack.enter_context
    preemption = preemption or enter(Preemption())
    stop = lambda: preemption.requested
    check_start(config, logdir)
    parts.check_environment(config, stop, terminal.log_status)
    env = enter(_training_envs(config, step, stop, terminal))
    agent = parts.make_agent(config, env)
    policy = parts.make_policy(config, agent, env.num_envs)
    replay = parts.make_replay(config, agent, env.num_envs)
    learner = parts.make_learner(config, agent)
    evaluator = None
    if with_eval:
      evaluator = enter(
        _evaluator(config, agent, learner, step, sync, preemption, terminal)
      )
    memory.check(
      config,
      learner,
      sync.gather,
      terminal.log_status,
      memory.steps_at_end(config, checkpoints),
    )
    saver = enter(
      Saver(
        config,
        logdir,
        learner,
        *([replay, evaluator.replay] if evaluator else [replay]),
        conversion=env.conversion,
        gather=sync.gather,
      )
    )
    saved = saver.load_or_init(terminal.log_status)
    if index == 0:
      logdirs.save_config(config, logdir)
    terminal.log_status(_describe_parameters(learner))
    for line in _changes(config, saved):
      terminal.log_status(line)
    timer.resume(saved.get('timer', {}))
    progress = Progress(
      config, sync, replay, env.num_envs, saved, config.env.unroll
    )
    actor, store = parts.make_actor(config, env, policy, replay, step)
    acting = actor if isinstance(actor, UnrolledActor) else policy
    logger = Logger(
      config=config,
      logdir=str(logdir),
      writers=enter(
        Writers(
          logdir,
          outputs,
          config.to_dict(),
          resume_step=saved.get('step', 0),
          terminal=terminal,
        )
      ),
      timer=timer,
      sync=sync,
      learner=learner,
      replay=replay,
      progress=progress,
      env=env,
      version=lambda: acting.version,
    )
    run = Run(
      resumed=bool(saved),
      actor=actor,
      store=store,
      replay=replay,
      stream=_training_stream(config, replay),
      learner=learner,
      publisher=Publisher(learner, policy, config.policy.publish_every),
      policy=policy,
      reporter=Reporter(
        config,
        learner,
        replay,
        seed=parts.seed(config, parts.REPORT, step, index),
        prefix='report/',
      ),
      evaluator=evaluator,
      saver=saver,
      logger=logger,
      progress=progress,
      sync=sync,
      preemption=preemption,
      profiler=enter(Profiler(config.run.profile, logdir, terminal.log_status)),
      timer=timer,
      terminal=terminal,
    )
    if saved:
      run.load(saved)
    # A request that comes once the run says that it starts is its own.
    preemption.attend(terminal.log_status, saver.settle)
    _start(run)
    yield run


@contextlib.contextmanager
def _training_envs(
  config: ConfigDict, step: int, stop: Callable[[], bool], terminal: Terminal
) -> Iterator[VectorEnv | functional.Vector]:
  """Makes the environments that this host acts in, and tells about them."""
  hosts = jax.process_count()
  where = f' on each of {hosts} hosts' if hosts > 1 else ''
  terminal.log_status(
    f'Starting {config.run.envs} environments of {config.task}{where}.'
  )
  with parts.training_envs(config, step, stop) as env:
    for line in env.conversion.table():
      terminal.log_status(line)
    yield env


@contextlib.contextmanager
def _evaluator(
  config: ConfigDict,
  agent: Agent,
  learner: Learner,
  step: int,
  sync: HostSync,
  preemption: Preemption,
  terminal: Terminal,
) -> Iterator[Evaluator]:
  """Makes the evaluator of this host, and closes its environments."""
  hosts, index = jax.process_count(), jax.process_index()
  stop = lambda: preemption.requested
  env = parts.make_envs(config, step, stop, evaluate=True)
  with contextlib.closing(env):
    replay = parts.make_replay(config, agent, env.num_envs, evaluate=True)
    seed = parts.seed(config, parts.EVAL_REPORT, step, index)
    yield Evaluator(
      env=env,
      policy=parts.make_policy(config, agent, env.num_envs, evaluate=True),
      replay=replay,
      reporter=Reporter(config, learner, replay, seed=seed),
      sync=sync,
      preemption=preemption,
      terminal=terminal,
      count=len(range(index, config.run.eval_eps, hosts)),
      length=config.run.eval_length,
    )


def _training_stream(config: ConfigDict, replay: Replay) -> Stream:
  return Stream(
    replay,
    batch=config.batch_size // jax.process_count(),
    length=config.batch_length,
    consec=config.consec_train,
    context=config.replay_context,
  )


def _describe_parameters(learner: Learner) -> str:
  counts = learner.parameter_counts()
  modules = ', '.join(f'{name} {count:,}' for name, count in counts.items())
  return f'The agent has {sum(counts.values()):,} parameters: {modules}.'


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
  start = progress.first_training_step
  run.terminal.log_status(
    f'Filling the replay with {needed:,} sequences, until step {start:,}.'
  )
  if progress.trains and start > progress.max_step:
    logging.warning(
      'The run is too short to learn: it ends at run.steps=%s, and training '
      'begins at step %s. Use a larger run.steps, or a smaller batch.',
      progress.max_step,
      start,
    )


def _changes(config: ConfigDict, run: Mapping[str, Any]) -> Iterator[str]:
  """Yields a line for each difference to the run state of a checkpoint."""
  if not run:
    return
  version, saved = run.get('version'), run['config']
  if version and version != dreamer_tpu.__version__:
    yield f'dreamer_tpu: {version} -> {dreamer_tpu.__version__}'
  for name, values in config_changes(saved, config.to_dict()).items():
    # Hosts and their addresses change by themselves, keys with the version.
    if not name.startswith('distributed.') and 'absent' not in values:
      yield f'{name}: {" -> ".join(values)}'
  if not same_pace(config, saved):
    yield describe_pace(config, saved)
