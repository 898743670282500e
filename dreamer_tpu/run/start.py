"""Makes all parts of a training run, or restores them from its logdir."""

import contextlib
from collections.abc import Iterator

from etils import epath
from ml_collections import ConfigDict

from dreamer_tpu.checkpoint import layout
from dreamer_tpu.cli import logdirs
from dreamer_tpu.hosts.heartbeat import Pod
from dreamer_tpu.hosts.preemption import Preemption
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.metrics.profiler import Profiler
from dreamer_tpu.metrics.terminal import View
from dreamer_tpu.metrics.timer import Timer
from dreamer_tpu.metrics.writers import Writers
from dreamer_tpu.run import build
from dreamer_tpu.run.evaluator import Evaluator
from dreamer_tpu.run.saving import Saver
from dreamer_tpu.run.session import Session
from dreamer_tpu.run.time_limit import Watched


@contextlib.contextmanager
def session(
  config: ConfigDict, logdir: epath.Path, *, evaluates: bool = False
) -> Iterator[Session]:
  """Everything that a training run needs; fresh or restored from the logdir.

  Args:
    config: The merged and validated configuration.
    logdir: Directory of the run, the same on all hosts.
    evaluates: Whether each report comes with an evaluation.

  Raises:
    UserError: The configuration, the environment or the logdir do not fit.
  """
  timer = Timer()
  with contextlib.ExitStack() as stack:
    pod = stack.enter_context(Pod(config.distributed))
    outputs = () if pod.index else config.metrics.outputs
    view = View(enabled='log' in outputs)
    preemption = stack.enter_context(Preemption(view.status))
    step = max(layout.steps(logdir / 'checkpoints'), default=0)

    hosts = f' on each of {pod.count} hosts' if pod.count > 1 else ''
    view.status(
      f'Starting {config.run.envs} environments of {config.task}{hosts}.'
    )
    env = stack.enter_context(
      Watched(build.environments(config, step), pod, config)
    )
    agent = build.agent(config, env)
    learner = build.learner(config, agent)
    replay = build.replay(
      config,
      agent,
      env.num_envs,
      capacity=config.replay.size,
      online=config.replay.online,
      stream=build.REPLAY,
    )
    evaluator = None
    if evaluates:
      eval_env = stack.enter_context(
        Watched(build.eval_environments(config, step), pod, config)
      )
      evaluator = Evaluator(config, eval_env, learner, pod, preemption, step)
    eval_replay = evaluator.replay if evaluator else None
    saver = stack.enter_context(
      Saver(config, logdir, learner, replay, eval_replay)
    )
    saved = saver.load_or_init(view.status)
    if not pod.index:
      logdirs.save_config(config, logdir)
    view.status(_describe(learner))
    writers = stack.enter_context(
      Writers(
        logdir,
        outputs,
        config.to_dict(),
        resume_step=saved.get('step', 0),
        view=view,
      )
    )
    profiler = stack.enter_context(
      contextlib.closing(Profiler(config.run.profile, logdir, view.status))
    )
    timer.resume(saved.get('timer', {}))
    run = Session(
      config, pod, env, learner, replay, writers, profiler, timer, saved
    )
    run.attend(saver, preemption, evaluator, saved)
    yield run
    run.finish(str(logdir))


def _describe(learner: Learner) -> str:
  """The number of parameters, in all and by module."""
  counts = learner.parameter_counts()
  modules = ', '.join(f'{name} {count:,}' for name, count in counts.items())
  return f'The agent has {sum(counts.values()):,} parameters: {modules}.'
