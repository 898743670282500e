"""Reports on replayed sequences, and evaluations during training."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dreamer_tpu.actor.evaluation import Evaluation, evaluate, summarize
from dreamer_tpu.envs import VectorEnv
from dreamer_tpu.hosts.preemption import Preemption
from dreamer_tpu.hosts.sync import HostSync
from dreamer_tpu.learner.acting import PolicyStep
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.metrics.terminal import Terminal
from dreamer_tpu.replay import Replay, Stream


class Reporter:
  """Computes losses and videos of replayed sequences, without an update.

  Args:
    config: Configuration of the run.
    learner: Learner with its state.
    replay: Replay to sample from.
    seed: Seed of the samples.
    prefix: Prefix of the names of scalars.

  Attributes:
    stream: Stream of the batches.
  """

  def __init__(
    self,
    config: ConfigDict,
    learner: Learner,
    replay: Replay,
    *,
    seed: int,
    prefix: str = '',
  ):
    self._learner = learner
    self._batches = config.run.report_batches
    self._parts = config.consec_report
    self._prefix = prefix
    self.stream = Stream(
      replay,
      batch=config.batch_size // jax.process_count(),
      length=config.report_length,
      consec=config.consec_report,
      context=config.replay_context,
      online=False,
      seed=seed,
    )

  def __call__(self, update: int) -> dict[str, Any]:
    """Returns metrics averaged over all batches, and videos of the first.

    Args:
      update: Updates so far, which seed the random numbers.
    """
    totals: dict[str, list[float]] = {}
    videos: dict[str, Any] = {}
    for i in range(self._batches):
      batches = [next(self.stream)[0] for _ in range(self._parts)]
      metrics, new_videos = self._learner.report(
        [self._learner.put(batch) for batch in batches], update + i
      )
      for name, value in metrics.items():
        totals.setdefault(self._prefix + name, []).append(value)
      videos = videos or new_videos
    return {**{k: float(np.mean(v)) for k, v in totals.items()}, **videos}


@dataclasses.dataclass(kw_only=True)
class Evaluator:
  """Plays episodes into a replay of their own, and reports on it.

  Attributes:
    env: Evaluation environments of this host.
    policy: Policy for these environments.
    replay: Replay of their steps.
    reporter: Reporter on this replay.
    sync: Exchange between the hosts, which share the episodes.
    preemption: Stop request, which ends an evaluation early.
    terminal: Shows the progress of an evaluation.
    count: Episodes of this host in each evaluation.
    length: Maximum number of steps of an episode; 0 for no limit.
    episodes: Episodes of all hosts in the last evaluation.
    score: Mean score of the last complete evaluation.
  """

  env: VectorEnv
  policy: PolicyStep
  replay: Replay
  reporter: Reporter
  sync: HostSync
  preemption: Preemption
  terminal: Terminal
  count: int
  length: int
  episodes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  score: float | None = None

  def __call__(
    self,
    params: dict[str, Any],
    update: int,
    fail: Callable[[BaseException], None],
  ) -> dict[str, Any]:
    """Evaluates the policy; all hosts call this at the same update.

    Args:
      params: Weights of the policy.
      update: Updates so far.
      fail: Receives the error of the environments of this host.

    Returns:
      'eval/episode/*' statistics of the episodes, videos of one environment,
      and 'eval/*' losses and videos of the evaluation replay; empty if the run
      is to stop or if the environments of a host failed.
    """
    self.policy.params = params
    try:
      result = evaluate(
        self.env,
        self.policy,
        self.count,
        store=self.replay.add,
        stepped=self._show,
        stop=lambda: self.preemption.requested,
        length=self.length,
        record=1,
      )
    except Exception as error:
      fail(error)  # And goes on: other hosts wait for the result of this one.
      result = Evaluation(episodes=[], unfinished=[], videos={}, complete=False)
    hosts = self.sync.gather(
      [
        result.complete,
        len(self.replay) > 0,
        result.episodes,
        result.unfinished,
        self.env.restarts,
      ]
    )
    complete, filled, episodes, unfinished, restarts = zip(*hosts, strict=True)
    self.episodes = []
    if not all(complete):
      return {}
    self.episodes = [episode for part in episodes for episode in part]
    late = [episode for part in unfinished for episode in part]
    metrics: dict[str, Any] = summarize(self.episodes, late)
    if late:
      self.terminal.log_status(describe_unfinished(len(late), self.length))
    metrics['env/restarts'] = sum(restarts)
    self.score = metrics.get('episode/score', self.score)
    metrics |= {f'episode/{k}': v for k, v in result.videos.items()}
    if all(filled):
      metrics |= self.reporter(update)
    return {f'eval/{k}': v for k, v in metrics.items()}

  def _show(self, steps: int, ended: int) -> None:
    self.terminal.pulse(describe_progress(steps, ended, self.count))


def describe_progress(steps: int, ended: int, count: int) -> str:
  """Returns a line on the progress of an evaluation."""
  return f'evaluation: {ended}/{count} episodes, step {steps:,}'


def describe_unfinished(count: int, length: int) -> str:
  """Returns a line on episodes that did not end within `run.eval_length`."""
  return (
    f'{count} episodes of the evaluation did not end within run.eval_length='
    f'{length:,} steps; they are counted apart, as eval/unfinished.'
  )
