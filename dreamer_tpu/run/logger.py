"""Collects the metrics of a run and writes them."""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from dreamer_tpu.actor.episodes import Averages
from dreamer_tpu.envs import VectorEnv
from dreamer_tpu.envs.functional import Vector
from dreamer_tpu.hosts.sync import HostSync
from dreamer_tpu.learner.learner import Learner, Result
from dreamer_tpu.metrics.aggregate import Aggregator
from dreamer_tpu.metrics.performance import Performance
from dreamer_tpu.metrics.system import Usage, release_memory
from dreamer_tpu.metrics.timer import Rate, Section, Timer, section_metrics
from dreamer_tpu.metrics.writers import Writers
from dreamer_tpu.replay import Replay
from dreamer_tpu.run.progress import Progress

# Replay metrics that are summed over hosts.
_SUMMED = ('items', 'steps', 'imported', 'inserts', 'samples')


@dataclasses.dataclass(kw_only=True)
class Logger:
  """Collects metrics and writes them, on process 0.

  Attributes:
    env: Environments of this host.
    version: Returns the updates that the weights which act have had.
    episodes: New episodes of this host with their 'step'; any thread may
      append to them.
    averages: Statistics of episodes since the last log.
  """

  config: ConfigDict
  logdir: str
  writers: Writers
  timer: Timer
  sync: HostSync
  learner: Learner
  replay: Replay
  progress: Progress
  env: VectorEnv | Vector
  version: Callable[[], int]
  episodes: collections.deque[dict[str, Any]] = dataclasses.field(
    default_factory=collections.deque
  )
  averages: Averages = dataclasses.field(default_factory=Averages)

  def __post_init__(self) -> None:
    self._ended = self.progress.offline  # Whether an episode has ended.
    self._unsent: list[dict[str, Any]] = []  # Episodes that process 0 lacks.
    self._compiled: set[str] = set()
    self._train = Aggregator()
    self._usage = Usage()
    self._performance = Performance()
    self._counted_flops = False
    self._batch_steps = self.config.batch_size * self.config.batch_length
    self._policy_fps = Rate(self.progress.step)
    self._train_fps = Rate(self.progress.update * self._batch_steps)
    self._latest: dict[str, float] = {}

  def compiled(self, program: str) -> bool:
    """Returns whether a section has run a program already."""
    return program in self._compiled

  @contextlib.contextmanager
  def section(self, name: str, *, compiles: str) -> Iterator[None]:
    """Times a section; its first use, which compiles, counts as 'compiling'.

    Args:
      name: Name of the section.
      compiles: Name of the program that the section runs; '' if it compiles
        nothing that takes long.
    """
    if not compiles or compiles in self._compiled:
      with self.timer.section(name):
        yield
      return
    self._compiled.add(compiles)
    working = self.writers.terminal.working(f'Compiling {compiles}')
    with working, self.timer.section('compiling'):
      yield
      release_memory()

  def add_update(self, result: Result) -> None:
    """Adds the metrics of an update."""
    self._train.add(result.metrics, 'train')
    if result.nonfinite:
      logging.warning(
        'Skipped an update: the gradient of %s is not finite (%d skipped).',
        result.nonfinite,
        result.metrics['opt/skipped'],
      )

  def add_episodes(self) -> None:
    """Adds the new episodes of this host."""
    while self.episodes:
      episode = self.episodes.popleft()
      if jax.process_index():
        self._unsent.append(episode)
      else:
        self._add_episode(episode)

  def gather_episodes(self) -> None:
    """Sends the episodes of all other hosts to process 0."""
    hosts = self._gather(self._unsent)
    self._unsent = []
    if jax.process_index() == 0:
      episodes = [episode for part in hosts for episode in part]
      for episode in sorted(episodes, key=lambda episode: episode['step']):
        self._add_episode(episode)

  def write(self, saves: Mapping[str, float]) -> None:
    """Writes all metrics since the last call, and shows progress.

    Args:
      saves: Metrics of checkpoints.
    """
    progress = self.progress
    progress.logged = progress.step
    self.gather_episodes()
    train = self._train.take()
    if train and not self._counted_flops:
      self._count_flops()
    sections = self.timer.take()
    learning = sections.get('learning')
    metrics = {
      **train,
      **self.averages.result(),
      **self._replay_metrics(),
      **section_metrics(sections),
      **self._performance.stats(learning.avg if learning else None),
      **_waits(sections),
      **self._usage.stats(_device_bytes()),
      **saves,
      **self.writers.stats(),
      'env/restarts': sum(self.sync.gather(self.env.restarts)),
      'policy/staleness': progress.update - self.version(),
      'fps/policy': self._policy_fps(progress.step),
      'fps/train': self._train_fps(progress.update * self._batch_steps),
      'perf/goodput': self.timer.goodput(),
    }
    self.write_report(metrics)
    if progress.offline:
      done, total, unit = progress.update, progress.max_update, 'update'
    else:
      done, total, unit = progress.step, progress.max_step, 'step'
    note = '' if self._ended else 'no episode has ended yet'
    self.writers.terminal.progress(done, total, metrics, unit=unit, note=note)
    self._latest.update(metrics)

  def write_scores(self, episodes: Sequence[Mapping[str, Any]]) -> None:
    """Writes the scores of an evaluation."""
    for episode in episodes:
      self._write_score(self.progress.step, episode, 'eval')

  def summary(self) -> None:
    """Shows the end of the run."""
    self.writers.terminal.summary(
      self.progress.step,
      self.progress.update,
      self._latest,
      self.timer.shares(),
      self.logdir,
      done=self.progress.done,
    )

  def write_report(self, metrics: Mapping[str, Any]) -> None:
    """Writes metrics and videos as they are."""
    step, update = self.progress.step, self.progress.update
    frames = step * self.env.repeat
    with self.progress.failing():
      self.writers.write(step, metrics, frames=frames, update=update)

  def _write_score(
    self, step: int, episode: Mapping[str, Any], mode: str
  ) -> None:
    score, length, stats = (episode[k] for k in ('score', 'length', 'stats'))
    with self.progress.failing():
      self.writers.write_score(step, score, length, mode, stats)

  def _add_episode(self, episode: Mapping[str, Any]) -> None:
    self._ended = True
    self.averages.add(episode['stats'])
    self._write_score(episode['step'], episode, 'train')

  def _replay_metrics(self) -> dict[str, float]:
    own = self.replay.stats()
    hosts = self._gather(own)
    summed = {name: sum(host[name] for host in hosts) for name in _SUMMED}
    return {f'replay/{k}': v for k, v in {**own, **summed}.items()}

  def _gather(self, value: Any) -> list[Any]:
    timeout = self.config.distributed.timeout
    return self.sync.gather(value, name='a log', timeout=timeout)

  def _count_flops(self) -> None:
    """Counts the FLOPs of an update; cheap once it is compiled."""
    self._counted_flops = True
    steps = self.learner.steps
    arguments = steps.train_arguments(self.config.batch_length)
    devices = steps.rows.mesh.devices.ravel()
    self._performance.count(
      steps.train.trace(*arguments).jaxpr, devices[0].device_kind, len(devices)
    )


def _waits(sections: Mapping[str, Section]) -> dict[str, float]:
  """Returns the fraction of time that each thread waits for the other."""
  names = ('actor_wait', 'learner_wait')
  return {f'perf/{k}': sections[k].frac for k in names if k in sections}


def _device_bytes() -> float | None:
  """Returns the peak bytes in use on the first device, where reported."""
  stats = jax.local_devices()[0].memory_stats()
  return stats.get('peak_bytes_in_use') if stats else None
