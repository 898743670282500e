"""Reports on replayed sequences, and evaluations during training."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dreamer_tpu.actor.evaluation import evaluate, summarize
from dreamer_tpu.envs import VectorEnv
from dreamer_tpu.hosts.preemption import Preemption
from dreamer_tpu.hosts.sync import HostSync
from dreamer_tpu.learner.acting import PolicyStep
from dreamer_tpu.learner.learner import Learner
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


class Evaluator:
  """Plays episodes into a replay of their own, and reports on it.

  Args:
    config: Configuration of the run.
    env: Evaluation environments of this host.
    policy: Policy step for these environments.
    replay: Evaluation replay of this host.
    reporter: Reporter on this replay.
    sync: Exchange between the hosts, which share the episodes.
    preemption: Stop request, which ends an evaluation early.

  Attributes:
    replay: Evaluation replay of this host.
    stream: Stream of the reporter.
    episodes: Episodes of all hosts in the last evaluation.
    score: Mean score of the last complete evaluation.
  """

  def __init__(
    self,
    config: ConfigDict,
    env: VectorEnv,
    policy: PolicyStep,
    replay: Replay,
    reporter: Reporter,
    sync: HostSync,
    preemption: Preemption,
  ):
    self._env = env
    self._policy = policy
    self._reporter = reporter
    self._sync = sync
    self._preemption = preemption
    share, rest = divmod(config.run.eval_eps, jax.process_count())
    self._share = share + (jax.process_index() < rest)
    self.replay = replay
    self.stream = reporter.stream
    self.episodes: list[dict[str, Any]] = []
    self.score: float | None = None

  def __call__(self, params: dict[str, Any], update: int) -> dict[str, Any]:
    """Evaluates the policy; all hosts call this at the same update.

    Args:
      params: Weights of the policy.
      update: Updates so far.

    Returns:
      'eval/episode/*' statistics of the episodes, videos of one environment,
      and 'eval/*' losses and videos of the evaluation replay; empty if the run
      was asked to stop meanwhile.
    """
    self._policy.params = params
    result = evaluate(
      self._env,
      self._policy,
      self._share,
      store=self.replay.add,
      stop=lambda: self._preemption.requested,
      record=1,
    )
    hosts = self._sync.gather(
      [result.complete, len(self.replay) > 0, result.episodes]
    )
    complete, filled, episodes = zip(*hosts, strict=True)
    self.episodes = []
    if not all(complete):
      return {}
    self.episodes = [episode for part in episodes for episode in part]
    metrics: dict[str, Any] = summarize(self.episodes)
    self.score = metrics.get('episode/score', self.score)
    metrics |= {f'episode/{k}': v for k, v in result.videos.items()}
    if all(filled):
      metrics |= self._reporter(update)
    return {f'eval/{k}': v for k, v in metrics.items()}
