"""Evaluation in the course of a training run."""

from typing import Any

from ml_collections import ConfigDict

from dreamer_tpu.actor.evaluation import evaluate, summarize
from dreamer_tpu.envs import VectorEnv
from dreamer_tpu.hosts.heartbeat import Pod
from dreamer_tpu.hosts.preemption import Preemption
from dreamer_tpu.hosts.sync import Agreement
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.run import build
from dreamer_tpu.run.learning import Reporter

# The share of the training replay's capacity.
_CAPACITY = 0.1


class Evaluator:
  """Plays episodes apart from training, into a replay of their own.

  Args:
    config: Of the run.
    env: This host's evaluation environments.
    learner: Whose losses on these episodes are reported.
    pod: The hosts, which share the episodes.
    preemption: Ends an evaluation early.
    step: At which the run starts.

  Attributes:
    replay: Of this host's evaluation.
    reporter: Of losses on it.
    episodes: Of the last evaluation; on process 0 of all hosts.
  """

  def __init__(
    self,
    config: ConfigDict,
    env: VectorEnv,
    learner: Learner,
    pod: Pod,
    preemption: Preemption,
    step: int,
  ):
    self._env = env
    self._pod = pod
    self._preemption = preemption
    share, rest = divmod(config.run.eval_eps, pod.count)
    self._share = share + (pod.index < rest)
    self._policy = build.policy(
      config,
      learner.agent,
      env.num_envs,
      stream=build.EVAL_ACTING,
      mode=config.policy.eval_mode,
    )
    self.replay = build.replay(
      config,
      learner.agent,
      env.num_envs,
      capacity=int(config.replay.size * _CAPACITY),
      online=False,
      stream=build.EVAL_REPLAY,
    )
    self.reporter = Reporter(
      config,
      learner,
      self.replay,
      build.seed(config, build.EVAL_REPORT, step, pod.index),
    )
    self.episodes: list[dict[str, Any]] = []

  def __call__(
    self, params: dict[str, Any], update: int, agreement: Agreement
  ) -> dict[str, Any]:
    """Evaluates the policy; all hosts call this at the same update.

    Args:
      params: The policy's weights.
      update: Updates so far.
      agreement: Of the hosts.

    Returns:
      'eval/episode/*' of the episodes, with videos of one environment, and
      'eval/*' losses and videos of the evaluation's replay; nothing if the
      run is told to stop meanwhile.
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
    self.episodes = []
    if not agreement.every(result.complete):
      return {}
    gathered = self._pod.gather('evaluation', result.episodes)
    self.episodes = [x for episodes in gathered for x in episodes]
    metrics: dict[str, Any] = summarize(self.episodes)
    metrics |= {f'episode/{k}': v for k, v in result.videos.items()}
    if agreement.every(len(self.replay) > 0):
      metrics |= self.reporter(update)
    return {f'eval/{k}': v for k, v in metrics.items()}
