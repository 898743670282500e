"""Statistics over the runs of several tasks (Agarwal et al. 2021).

'Deep Reinforcement Learning at the Edge of the Statistical Precipice'. Scores
are a list with one float array [..., seeds] per task; tasks may differ in their
number of seeds. Leading axes are independent of each other.
"""

from collections.abc import Callable, Sequence

import numpy as np

Scores = Sequence[np.ndarray]
Statistic = Callable[..., np.ndarray]

_LEVEL = 0.95
_RESAMPLES = 2000


def mean(scores: Scores) -> np.ndarray:
  """Returns the mean over tasks of the mean over seeds, [...]."""
  return np.mean([x.mean(-1) for x in scores], axis=0)


def median(scores: Scores) -> np.ndarray:
  """Returns the median over tasks of the mean over seeds, [...]."""
  return np.median([x.mean(-1) for x in scores], axis=0)


def iqm(scores: Scores) -> np.ndarray:
  """Returns the interquartile mean, [...].

  It is the mean of the runs of all tasks without the lowest and the highest
  quarter of them, whose numbers are rounded down.
  """
  pooled = np.sort(np.concatenate(scores, axis=-1), axis=-1)
  quarter = pooled.shape[-1] // 4
  return pooled[..., quarter : pooled.shape[-1] - quarter].mean(-1)


def ratio(scores: Scores, others: Scores) -> np.ndarray:
  """Returns the mean score relative to that of others, [...].

  Means are over the seeds of a task; ratios are averaged over tasks.
  """
  pairs = zip(scores, others, strict=True)
  return np.mean([x.mean(-1) / y.mean(-1) for x, y in pairs], axis=0)


def improvement(scores: Scores, others: Scores) -> np.ndarray:
  """Returns the probability of improvement over others, [...].

  It is the probability that a random run scores higher than a random other run
  of the same task, on average over tasks; equal scores count half.
  """
  pairs = zip(scores, others, strict=True)
  signs = [np.sign(x[..., :, None] - y[..., None, :]) for x, y in pairs]
  return np.mean([(1 + x.mean((-2, -1))) / 2 for x in signs], axis=0)


def profile(scores: Scores, levels: np.ndarray) -> np.ndarray:
  """Returns the fraction of runs that score higher than each level, [..., L].

  Args:
    scores: Scores of each task, [..., seeds].
    levels: float [L].
  """
  pooled = np.concatenate(scores, axis=-1)
  return (pooled[..., None, :] > levels[:, None]).mean(-1)


def interval(statistic: Statistic, *groups: Scores) -> np.ndarray:
  """Returns the 95% confidence interval of a statistic, [2, ...].

  Stratified bootstrap: seeds are drawn with replacement within each task. The
  interval is between percentiles of the statistic of 2,000 resamples, which are
  the same in every call.

  Args:
    statistic: Function of the groups.
    *groups: Scores of each task, [seeds].
  """
  generator = np.random.default_rng(0)
  resampled = [
    [x[generator.integers(x.size, size=(_RESAMPLES, x.size))] for x in scores]
    for scores in groups
  ]
  tails = (1 - _LEVEL) / 2, (1 + _LEVEL) / 2
  return np.quantile(statistic(*resampled), tails, axis=0)
