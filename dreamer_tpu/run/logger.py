"""Collects what a run measures and writes it at intervals."""

from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from dreamer_tpu.actor.episodes import Averages
from dreamer_tpu.learner.learner import Learner, Result
from dreamer_tpu.metrics.aggregate import Aggregator
from dreamer_tpu.metrics.performance import Performance
from dreamer_tpu.metrics.system import Usage
from dreamer_tpu.metrics.timer import Rate, Timer
from dreamer_tpu.metrics.writers import Writers


class Logger:
  """The metrics of a run.

  Args:
    writers: Where they go.
    timer: Of the run's sections.
    total: Agent steps of the whole run.
    updates: Of the whole run, if it only learns; else 0.
    repeat: Environment steps per agent step.
    batch_steps: Replayed steps per update.
    step: Agent steps at the start.
    update: Updates at the start.
  """

  def __init__(
    self,
    writers: Writers,
    timer: Timer,
    *,
    total: int,
    updates: int,
    repeat: int,
    batch_steps: int,
    step: int,
    update: int,
  ):
    self._writers = writers
    self._timer = timer
    self._total = total
    self._updates = updates
    self._repeat = repeat
    self._batch_steps = batch_steps
    self._train = Aggregator()
    self._usage = Usage()
    self._performance = Performance()
    self._policy_fps = Rate(step)
    self._train_fps = Rate(update * batch_steps)
    self._latest: dict[str, float] = {}

  def count_flops(self, learner: Learner, batch_length: int) -> None:
    """Counts the FLOPs of an update; costs nothing once it is compiled."""
    arguments = learner.steps.train_arguments(batch_length)
    devices = learner.steps.rows.mesh.devices.ravel()
    self._performance.count(
      learner.steps.train.trace(*arguments).jaxpr,
      devices[0].device_kind,
      len(devices),
    )

  def episode(self, step: int, episode: Mapping[str, Any], mode: str) -> None:
    """Writes the score of an episode that ended at `step`."""
    self._writers.score(step, episode['score'], episode['length'], mode)

  def result(self, result: Result | None) -> None:
    """Takes the metrics of an update."""
    if result is None:
      return
    self._train.add(result.metrics, 'train')
    if result.nonfinite:
      logging.warning(
        'Skipped an update: the gradient of %s is not finite (%d skipped).',
        result.nonfinite,
        result.metrics['opt/skipped'],
      )

  def write(
    self,
    step: int,
    update: int,
    replay: Mapping[str, float],
    episodes: Averages,
    extra: Mapping[str, float],
  ) -> None:
    """Writes everything collected since the last call, and shows progress."""
    timer = self._timer.stats()
    metrics = {
      **self._train.result(),
      **episodes.result(),
      **{f'replay/{k}': v for k, v in replay.items()},
      **timer,
      **self._performance.stats(timer.get('timer/learning/avg')),
      **_waits(timer),
      **self._usage.stats(_device_bytes()),
      **extra,
      'fps/policy': self._policy_fps(step),
      'fps/train': self._train_fps(update * self._batch_steps),
      'perf/goodput': self._timer.goodput(),
    }
    self.report(step, update, metrics)
    view = self._writers.view
    if self._updates:
      view.progress(update, self._updates, metrics, unit='update')
    else:
      view.progress(step, self._total, metrics)
    self._latest.update(metrics)

  def summary(self, step: int, update: int, logdir: str, *, done: bool) -> None:
    """Shows how the run ended."""
    metrics = {**self._latest, **self._timer.shares()}
    self._writers.view.summary(step, update, metrics, logdir, done=done)

  def report(self, step: int, update: int, metrics: Mapping[str, Any]) -> None:
    """Writes metrics and videos as they are."""
    frames = step * self._repeat
    self._writers.write(step, metrics, frames=frames, update=update)


def _waits(timer: Mapping[str, float]) -> dict[str, float]:
  """How much of their time the threads wait for each other."""
  names = ('actor_wait', 'learner_wait')
  fractions = {name: timer.get(f'timer/{name}/frac') for name in names}
  return {f'perf/{k}': v for k, v in fractions.items() if v is not None}


def _device_bytes() -> float | None:
  """Peak bytes in use on the first device, where it tells."""
  stats = jax.local_devices()[0].memory_stats()
  return stats.get('peak_bytes_in_use') if stats else None
