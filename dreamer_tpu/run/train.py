"""Acting and learning by turns, in one thread: the synchronous mode.

The same seed gives the same run. One step of every environment, then the
updates that are due by `run.train_ratio`.
"""

import contextlib
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from dreamer_tpu.actor.actor import Actor
from dreamer_tpu.checkpoint import layout
from dreamer_tpu.learner.acting import PolicyStep
from dreamer_tpu.learner.clock import Every
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.metrics.terminal import View
from dreamer_tpu.metrics.timer import Timer
from dreamer_tpu.metrics.writers import Writers
from dreamer_tpu.replay import Ratio, Replay, Stream
from dreamer_tpu.run import build, logdirs
from dreamer_tpu.run.logger import Logger
from dreamer_tpu.run.preemption import EXIT_CODE, Preemption
from dreamer_tpu.run.saving import Saver


def main(config: ConfigDict, logdir: epath.Path) -> int:
  """Trains until `run.steps`; starts or goes on, whatever the logdir holds.

  Args:
    config: The merged and validated configuration.
    logdir: Directory of the run.

  Returns:
    Exit code: 0 when done, 75 if it was told to stop and has saved.

  Raises:
    UserError: The configuration, the environment or the logdir do not fit.
  """
  with contextlib.ExitStack() as stack:
    view = View(enabled='log' in config.metrics.outputs)
    preemption = stack.enter_context(Preemption(view.status))
    start = max(layout.steps(logdir / 'checkpoints'), default=0)

    view.status(f'Starting {config.run.envs} environments of {config.task}.')
    env = stack.enter_context(
      contextlib.closing(build.environments(config, start))
    )
    agent = build.agent(config, env)
    learner = build.learner(config, agent)
    replay = build.replay(config, agent, env.num_envs)
    saver = stack.enter_context(Saver(config, logdir, learner, replay))
    saved = saver.load_or_init(view.status)
    logdirs.save_config(config, logdir)
    view.status(describe(learner))

    run = Training(config, env, learner, replay, saved)
    writers = stack.enter_context(
      Writers(
        logdir,
        config.metrics.outputs,
        config.to_dict(),
        resume_step=run.step,
        view=view,
      )
    )
    logger = Logger(
      writers,
      run.timer,
      total=config.run.steps,
      repeat=env.repeat,
      batch_steps=config.batch_size * config.batch_length,
      step=run.step,
      update=run.update,
    )
    log = Every(config.run.log_every, first=True, update=run.update)
    report = Every(config.run.report_every, update=run.update)
    save = Every(config.run.save_every, update=run.update)

    if run.step < config.run.steps and not run.ready:
      view.status(f'Filling the replay up to {run.needed:,} sequences.')
    while run.step < config.run.steps and not preemption.requested:
      finished = run.act()
      logger.episodes(run.step, finished)
      if not run.ready:
        continue
      due = run.due()
      if due and not run.compiled:
        view.status('Compiling the train step.')
      run.learn(due, logger)
      if log(run.update):
        extra = saver.poll()
        logger.write(run.step, run.update, replay, run.episodes, extra)
      if report(run.update):
        if not run.reports:
          view.status('Compiling the report.')
        logger.report(run.step, run.update, run.report())
      if save(run.update):
        with run.timer.section('saving'):
          saver.save(run.step, run.state())

    view.status(f'Saving step {run.step:,}.')
    saver.save(run.step, run.state())
    extra = saver.finish()
    logger.write(run.step, run.update, replay, run.episodes, extra)
    stopped = preemption.requested and run.step < config.run.steps
    logger.summary(run.step, run.update, str(logdir), done=not stopped)
    return EXIT_CODE if stopped else 0


class Training:
  """The parts of a synchronous run and how far it is.

  Attributes:
    step: Agent steps, over all environments.
    update: Updates.
    needed: Sequence starts in the replay from which on training begins.
    compiled: Whether an update has been dispatched.
    reports: Reports made by this process.
  """

  def __init__(
    self,
    config: ConfigDict,
    env: Any,
    learner: Learner,
    replay: Replay,
    saved: dict[str, Any],
  ):
    self._config = config
    self._env = env
    self._learner = learner
    self._replay = replay
    self._stream = Stream(
      replay,
      batch=config.batch_size,
      length=config.batch_length,
      consec=config.consec_train,
      context=config.replay_context,
    )
    self._report_stream = Stream(
      replay,
      batch=config.batch_size,
      length=config.report_length,
      consec=config.consec_report,
      context=config.replay_context,
      online=False,
      seed=build.seed(config, build.REPORT, saved.get('step', 0)),
    )
    batch_steps = config.batch_size * config.batch_length
    self._ratio = Ratio(config.run.train_ratio, batch_steps)
    self._policy = PolicyStep(
      learner.agent, env.num_envs, seed=build.seed(config, build.ACTING)
    )
    self._actor = Actor(env, self._policy, replay.add)
    self.needed = batch_steps
    self.compiled = False
    self.reports = 0
    self.timer = Timer(saved.get('timer'))
    self.step = saved.get('step', 0)
    self.update = saved.get('update', 0)
    if saved:
      self._ratio.load(saved['ratio'])
      self._policy.steps = saved['policy_steps']
      self.episodes.load(saved['episodes'])
    self._policy.params = learner.publish()

  @property
  def episodes(self):
    """Statistics of the training episodes."""
    return self._actor.episodes

  @property
  def ready(self) -> bool:
    """Whether the replay holds enough to train."""
    return len(self._replay) >= self.needed

  def act(self) -> list[dict[str, Any]]:
    """One step of every environment; returns the finished episodes."""
    with self.timer.section('acting'):
      finished = self._actor.step()
    self.step += self._env.num_envs
    return finished

  def due(self) -> int:
    """The number of updates that are due now; to be made with `learn`."""
    return self._ratio(self.step)

  def learn(self, due: int, logger: Logger) -> None:
    """Makes so many updates.

    The batch of an update is copied to the devices while they compute the one
    before. The last one is waited for, as the policy step that follows would.
    """
    if not due:
      return
    name = 'learning' if self.compiled else 'compiling'
    with self.timer.section(name):
      batch = self._fetch()
      for remaining in reversed(range(due)):
        result = self._learner.update(*batch)
        self.update += 1
        self._absorb(result, logger)
        if remaining:
          batch = self._fetch()
      self._policy.params = self._learner.publish()
      self._absorb(self._learner.flush(), logger)
    self.compiled = True

  def report(self) -> dict[str, Any]:
    """Metrics and videos of replayed batches, without an update."""
    totals: dict[str, list[float]] = {}
    videos: dict[str, Any] = {}
    with self.timer.section('reporting'):
      for i in range(self._config.run.report_batches):
        parts = [
          self._learner.put(next(self._report_stream)[0])
          for _ in range(self._config.consec_report)
        ]
        metrics, new_videos = self._learner.report(parts, self.update + i)
        for name, value in metrics.items():
          totals.setdefault(f'report/{name}', []).append(value)
        videos = videos or new_videos
    self.reports += 1
    return {**{k: float(np.mean(v)) for k, v in totals.items()}, **videos}

  def state(self) -> dict[str, Any]:
    """JSON values from which a run goes on."""
    return {
      'step': self.step,
      'update': self.update,
      'ratio': self._ratio.state(),
      'policy_steps': self._policy.steps,
      'episodes': self.episodes.state(),
      'timer': self.timer.state(),
    }

  def _fetch(self):
    data, stepid = next(self._stream)
    return self._learner.put(data), stepid

  def _absorb(self, result, logger: Logger) -> None:
    if result is not None:
      self._replay.update(result.stepid, result.latents)
      logger.result(result)


def describe(learner: Learner) -> str:
  """The number of parameters, in all and by module."""
  counts = learner.parameter_counts()
  modules = ', '.join(f'{name} {count:,}' for name, count in counts.items())
  return f'The agent has {sum(counts.values()):,} parameters: {modules}.'
