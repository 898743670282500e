"""Updates and reports from replayed batches.

With several hosts, all must call the methods here in the same order.
"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dreamer_tpu.learner.learner import Learner, Result
from dreamer_tpu.metrics.profiler import Profiler
from dreamer_tpu.metrics.timer import Timer
from dreamer_tpu.replay import Replay, Stream
from dreamer_tpu.run import build
from dreamer_tpu.run.logger import Logger


class Learning:
  """Feeds the learner from this host's replay, and what it returns back.

  Args:
    config: Of the run.
    learner: With its state.
    replay: This host's.
    timer: Of the run's sections.
    logger: Takes the metrics of updates.
    profiler: Traces those that the user wants to see.
    saved: The run's state in the checkpoint, empty for a fresh run.

  Attributes:
    update: Updates so far.
    needed: Sequence starts in the replay from which on training begins.
    compiled: Whether this process has made an update.
    stream: Of the training batches.
  """

  def __init__(
    self,
    config: ConfigDict,
    learner: Learner,
    replay: Replay,
    timer: Timer,
    logger: Logger,
    profiler: Profiler,
    saved: dict[str, Any],
  ):
    self._learner = learner
    self._replay = replay
    self._timer = timer
    self._logger = logger
    self._profiler = profiler
    self._length = config.batch_length
    self.update = saved.get('update', 0)
    self.compiled = False
    rows = build.local_rows(config)
    self.needed = rows * config.batch_length
    self.stream = Stream(
      replay,
      batch=rows,
      length=config.batch_length,
      consec=config.consec_train,
      context=config.replay_context,
    )

  @property
  def ready(self) -> bool:
    """Whether the replay holds enough to train."""
    return len(self._replay) >= self.needed

  def learn(self, count: int, *, wait: bool) -> None:
    """Makes so many updates.

    The batch of an update is copied to the devices while they compute the one
    before.

    Args:
      count: Updates to make.
      wait: Whether to wait for the last one, as the policy step that follows
        in the same thread would.
    """
    for i in reversed(range(count)):
      name = 'learning' if self.compiled else 'compiling'
      with self._timer.section(name), self._profiler(self.update):
        data, stepid = next(self.stream)
        result = self._learner.update(self._learner.put(data), stepid)
        self.update += 1
        self._absorb(result)
        if not self.compiled or (wait and not i):
          self.flush()
      if not self.compiled:
        self._logger.count_flops(self._learner, self._length)
        self.compiled = True

  def flush(self) -> None:
    """Waits for the last update; its latents are then in the replay."""
    self._absorb(self._learner.flush())

  def _absorb(self, result: Result | None) -> None:
    if result is not None:
      self._replay.update(result.stepid, result.latents)
      self._replay.prioritize(result.stepid, result.priority)
      self._logger.result(result)


class Reporter:
  """Losses and videos of a replay's sequences, without an update.

  Args:
    config: Of the run.
    learner: With its state.
    replay: Of training, or of evaluation.
    seed: Of what is drawn.

  Attributes:
    stream: Of the batches.
  """

  def __init__(
    self, config: ConfigDict, learner: Learner, replay: Replay, seed: int
  ):
    self._config = config
    self._learner = learner
    self.stream = Stream(
      replay,
      batch=build.local_rows(config),
      length=config.report_length,
      consec=config.consec_report,
      context=config.replay_context,
      online=False,
      seed=seed,
    )

  def __call__(self, update: int) -> dict[str, Any]:
    """Metrics averaged over `run.report_batches`, and videos of the first.

    Args:
      update: Updates so far, for the random numbers.
    """
    totals: dict[str, list[float]] = {}
    videos: dict[str, Any] = {}
    for i in range(self._config.run.report_batches):
      parts = [
        self._learner.put(next(self.stream)[0])
        for _ in range(self._config.consec_report)
      ]
      metrics, new_videos = self._learner.report(parts, update + i)
      for name, value in metrics.items():
        totals.setdefault(name, []).append(value)
      videos = videos or new_videos
    return {**{k: float(np.mean(v)) for k, v in totals.items()}, **videos}
