"""A run while it goes: its parts on this host, and how far all hosts are.

The scripts beside this file say what happens in which order. With several
hosts each runs the same script, and `Session.turn` keeps them together.
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dreamer_tpu.actor.actor import Actor
from dreamer_tpu.actor.episodes import Averages
from dreamer_tpu.checkpoint.shard import LOCAL
from dreamer_tpu.envs import VectorEnv
from dreamer_tpu.errors import UserError
from dreamer_tpu.hosts.clock import Every
from dreamer_tpu.hosts.heartbeat import Pod
from dreamer_tpu.hosts.preemption import EXIT_CODE, Preemption
from dreamer_tpu.hosts.sync import Agreement
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.learner.publishing import Publisher
from dreamer_tpu.metrics.profiler import Profiler
from dreamer_tpu.metrics.timer import Timer
from dreamer_tpu.metrics.writers import Writers
from dreamer_tpu.replay import Replay, Stream
from dreamer_tpu.run import build
from dreamer_tpu.run.evaluator import Evaluator
from dreamer_tpu.run.learning import Learning, Reporter
from dreamer_tpu.run.logger import Logger
from dreamer_tpu.run.ratio import Ratio
from dreamer_tpu.run.saving import Saver

# What the hosts' replays hold is added up in the log.
_SUMMED = ('items', 'steps', 'inserts', 'samples')


class Session:
  """How far the run is, and what is to be done next.

  `act`, `behind` and `wait` are for the thread that acts, which may be another
  one than that of the rest.

  Attributes:
    step: Agent steps over all hosts, as all of them know it.
  """

  def __init__(
    self,
    config: ConfigDict,
    pod: Pod,
    env: VectorEnv,
    learner: Learner,
    replay: Replay,
    writers: Writers,
    profiler: Profiler,
    timer: Timer,
    saved: dict[str, Any],
  ):
    self._config = config
    self._pod = pod
    self._replay = replay
    self._view = writers.view
    self.step = self._logged = saved.get('step', 0)
    self.timer = timer
    batch_steps = config.batch_size * config.batch_length
    self._logger = Logger(
      writers,
      self.timer,
      total=config.run.steps,
      updates=config.run.updates,
      repeat=env.repeat,
      batch_steps=batch_steps,
      step=self.step,
      update=saved.get('update', 0),
    )
    self._learning = Learning(
      config, learner, replay, self.timer, self._logger, profiler, saved
    )
    self._reporter = Reporter(
      config,
      learner,
      replay,
      build.seed(config, build.REPORT, self.step, pod.index),
    )
    self._policy = build.policy(
      config,
      learner.agent,
      env.num_envs,
      stream=build.ACTING,
      mode=config.policy.mode,
    )
    self._publisher = Publisher(
      learner, self._policy, config.policy.publish_every
    )
    self._actor = Actor(env, self._policy, replay.add)
    self._envs = env.num_envs
    self._episodes = Averages()
    self._agreement = Agreement()
    # Updates per step of one environment here, if all hosts act like this one.
    self._rate = config.run.train_ratio / batch_steps * pod.count
    self._ratio = Ratio(config.run.train_ratio, batch_steps)
    self._owed = 0
    self._acted = 0  # Agent steps of this host that the others do not know.
    self._counting = threading.Lock()
    self._acting = threading.Lock()  # Held during a step.
    self._moved = threading.Condition()
    self._stop = False
    self._updates = config.run.updates
    self._ready = self._agreement.every(self._learning.ready)
    self._load(saved)

  def _load(self, saved: dict[str, Any]) -> None:
    if saved:
      self._ratio.load(saved['ratio'])
      # Not in checkpoints of before there were several hosts.
      self._owed = saved.get('owed', 0)
      self._policy.steps = saved['policy_steps']
      self._episodes.load(saved.get('averages', {}))
    self._publish()
    if self.going and not self._ready:
      if self._updates:
        raise UserError(
          f'run.updates={self._updates} learns from the replay of the logdir: '
          f'every host needs {self._learning.needed:,} sequence starts of it, '
          f'this one has {len(self._replay):,}; act first, without it.'
        )
      needed = self._learning.needed * self._pod.count
      self._view.status(f'Filling the replay up to {needed:,} sequences.')

  def attend(
    self,
    saver: Saver,
    preemption: Preemption,
    evaluator: Evaluator | None,
    saved: dict[str, Any],
  ) -> None:
    """Takes over what is done from time to time, and its clocks."""
    self._saver = saver
    self._preemption = preemption
    self._evaluator = evaluator
    run, update = self._config.run, self._learning.update
    self._log = Every(run.log_every, first=True, update=update)
    self._report = Every(run.report_every, update=update)
    self._save = Every(run.save_every, update=update)
    self._reported = False
    self._score: float | None = None
    for name, state in saved.get(LOCAL, {}).items():
      if name in self._streams() and state:
        self._streams()[name].load(state)

  @property
  def going(self) -> bool:
    """Whether the run has neither reached its end nor been told to stop."""
    return not self._done and not self._stop

  @property
  def _done(self) -> bool:
    if self._updates:
      return self._learning.update >= self._updates
    return self.step >= self._config.run.steps

  def act(self) -> None:
    """One step of this host's environments."""
    with self._acting, self.timer.section('acting'):
      finished = self._actor.step()
      with self._counting:
        self._acted += self._envs
    for episode in finished:
      self._pod.tell('episode', episode)
    with self._moved:
      self._moved.notify_all()

  def behind(self) -> bool:
    """Whether acting should wait: for updates, or for other hosts' replays."""
    if self._updates:
      return True
    if not self._ready:
      return self._learning.ready
    step = self._rate * self._envs
    owed = self._owed + self._acted * self._rate
    return owed > 1 + 2 * step

  def wait(self, until: Callable[[], bool]) -> None:
    """Waits for the other thread to move, until it is so; not for long."""
    with self._moved:
      self._moved.wait_for(until, timeout=0.1)

  def turn(self, *, waits: bool = True) -> None:
    """Lets all hosts agree; learns, logs, reports and saves what is due.

    Args:
      waits: Whether to make all updates that are due and to wait for them.
        Otherwise one at most, which is waited for if no other is due: what
        comes then is the learner's own wait for the actor.
    """
    with self.timer.section('agreeing'):
      known = self._agreement(
        self._take_acted(), self._learning.ready, self._preemption.requested
      )
    self.step += known.steps
    self._stop |= known.stop
    self._ready |= known.ready
    self._hear()
    if not self._ready:
      return
    if self._updates:
      self._learn(1, wait=False)
    else:
      self._owed += self._ratio(self.step)
      count = self._owed if waits else min(self._owed, 1)
      self._learn(count, wait=count == self._owed)
    update = self._learning.update
    # The end of the run is logged by `finish`.
    if self.going and self._unlogged() and self._log(update, known.now):
      with self.timer.section('logging'):
        self._write_log()
    if self._report(update, known.now):
      self._make_report()
    # A save that is still being written on some host is not waited for.
    if self._save(update, known.now) and self._agreement.every(
      self._saver.ready()
    ):
      with self.timer.section('saving'):
        self._store()

  def finish(self, logdir: str) -> None:
    """Saves, logs and shows how the run ended."""
    self._view.status(f'Saving step {self.step:,}.')
    self._store()
    self._hear()
    saves = self._saver.finish()
    if self._unlogged():
      self._write_log(saves)
    self._logger.summary(
      self.step, self._learning.update, logdir, done=not self.stopped
    )

  @property
  def stopped(self) -> bool:
    """Whether it was told to stop before its end."""
    return self._stop and not self._done

  @property
  def exit_code(self) -> int:
    """0 when done, 75 if it was told to stop and has saved."""
    return EXIT_CODE if self.stopped else 0

  def idle(self) -> bool:
    """Whether no update is due, as far as this host knows."""
    return not self._updates and self._owed == 0 and self._acted == 0

  def _take_acted(self) -> int:
    with self._counting:
      acted, self._acted = self._acted, 0
    return acted

  def _hear(self) -> None:
    """Takes the episodes of all hosts, on process 0."""
    for episode in self._pod.news('episode'):
      self._episodes.add(episode['stats'])
      self._logger.episode(self.step, episode, 'train')

  def _learn(self, count: int, *, wait: bool) -> None:
    if not count:
      return
    if not self._learning.compiled:
      self._view.status('Compiling the train step.')
    self._learning.learn(count, wait=wait)
    if not self._updates:
      self._owed -= count
    self._publish()
    with self._moved:
      self._moved.notify_all()

  def _publish(self, *, now: bool = False) -> None:
    with self.timer.section('publishing'):
      self._publisher(self._learning.update, now=now)

  def _unlogged(self) -> bool:
    """Whether there is a step, or else an update, that no log is of."""
    return self.step > self._logged or bool(self._updates)

  def _write_log(self, extra: dict[str, float] | None = None) -> None:
    stats = self._replay.stats()
    shards = self._pod.gather('replay', stats)
    self._logged = self.step
    self._logger.write(
      self.step,
      self._learning.update,
      stats | {k: sum(shard[k] for shard in shards) for k in _SUMMED},
      self._episodes,
      {
        **(self._saver.poll() if extra is None else extra),
        'policy/staleness': self._publisher.staleness(self._learning.update),
      },
    )

  def _make_report(self) -> None:
    update, name = self._learning.update, 'reporting'
    if not self._reported:
      self._view.status('Compiling the report.')
      self._reported, name = True, 'compiling'
    with self.timer.section(name):
      self._learning.flush()
      metrics = self._reporter(update)
      report = {_place(k, v): v for k, v in metrics.items()}
    if self._evaluator:
      self._publish(now=True)
      self._view.status(f'Evaluating {self._config.run.eval_eps} episodes.')
      with self.timer.section('evaluating'):
        report |= self._evaluator(self._policy.params, update, self._agreement)
      for episode in self._evaluator.episodes:
        self._logger.episode(self.step, episode, 'eval')
      self._score = report.get('eval/episode/score', self._score)
    self._logger.report(self.step, update, report)

  def _store(self) -> None:
    """Saves at a moment that all hosts share, with the actor between steps."""
    with self._acting:
      self._learning.flush()
      self.step += self._agreement.settle(self._take_acted())
      if self._ready and not self._updates:
        self._owed += self._ratio(self.step)
      streams = {k: v.state() for k, v in self._streams().items()}
      self._saver.save(self.step, self._state(), streams, self._score)

  def _streams(self) -> dict[str, Stream]:
    """What each host draws batches from, for itself."""
    streams = {'stream': self._learning.stream, 'report': self._reporter.stream}
    if self._evaluator:
      streams['eval'] = self._evaluator.reporter.stream
    return streams

  def _state(self) -> dict[str, Any]:
    """JSON values from which a run goes on."""
    return {
      'step': self.step,
      'update': self._learning.update,
      'owed': self._owed,
      'ratio': self._ratio.state(),
      'policy_steps': self._policy.steps,
      'averages': self._episodes.state(),
      'timer': self.timer.state(),
    }


def _place(name: str, value: Any) -> str:
  """Videos and histograms of replayed sequences stand under their own name."""
  return name if np.ndim(value) else f'report/{name}'
