"""Scores and lengths of episodes, and statistics of what they logged."""

from collections.abc import Mapping
from typing import Any

import numpy as np

LOG = 'log/'


class Averages:
  """Means of the statistics of episodes, by name."""

  def __init__(self) -> None:
    self._totals: dict[str, list[float]] = {}  # Name: [sum, count].

  def add(self, stats: Mapping[str, float]) -> None:
    """Takes the 'stats' of an episode."""
    for name, value in stats.items():
      total = self._totals.setdefault(name, [0.0, 0])
      total[0] += value
      total[1] += 1

  def result(self) -> dict[str, float]:
    """Means over the episodes added since the last call."""
    totals, self._totals = self._totals, {}
    return {name: total / count for name, (total, count) in totals.items()}

  def state(self) -> dict[str, list[float]]:
    """What `load` restores: JSON types only."""
    return {name: list(total) for name, total in self._totals.items()}

  def load(self, state: Mapping[str, list[float]]) -> None:
    """Goes on from what `state` returned."""
    self._totals = {name: list(total) for name, total in state.items()}


class EpisodeStats:
  """Follows the episodes of N environments.

  An episode's score is the sum of its rewards, its length the number of
  actions in it. Of each scalar observation 'log/NAME' the average, maximum
  and sum over the steps of an episode are kept; NaN is left out.
  """

  def __init__(self, num_envs: int):
    self._num_envs = num_envs
    self._score = np.zeros(num_envs, np.float64)
    self._length = np.zeros(num_envs, np.int64)
    self._logs: dict[str, dict[str, np.ndarray]] = {}

  def update(self, obs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Takes one vector step.

    Args:
      obs: what the environments returned: 'reward' float32 [N], 'is_first' and
        'is_last' bool [N], 'log/NAME' [N] (others are left alone).

    Returns:
      One dict per episode that ended in this step, by environment: 'env' (its
      index), 'score' (float), 'length' (int), and 'stats', a float for each of
      'episode/score', 'episode/length' and 'epstats/NAME/{avg,max,sum}'.
    """
    first, last = obs['is_first'], obs['is_last']
    self._score = np.where(first, 0.0, self._score) + obs['reward']
    self._length = np.where(first, 0, self._length + 1)
    for key, value in obs.items():
      if key.startswith(LOG) and np.ndim(value) == 1:
        self._update_log(key.removeprefix(LOG), value, first)
    return [self._episode(i) for i in np.flatnonzero(last).tolist()]

  def _episode(self, i: int) -> dict[str, Any]:
    score, length = float(self._score[i]), int(self._length[i])
    stats = {'episode/score': score, 'episode/length': float(length)}
    for name, log in self._logs.items():
      if count := int(log['count'][i]):
        stats[f'epstats/{name}/avg'] = float(log['sum'][i]) / count
        stats[f'epstats/{name}/max'] = float(log['max'][i])
        stats[f'epstats/{name}/sum'] = float(log['sum'][i])
    return {'env': i, 'score': score, 'length': length, 'stats': stats}

  def _update_log(self, name: str, value: np.ndarray, first: np.ndarray):
    if name not in self._logs:
      self._logs[name] = {
        'sum': np.zeros(self._num_envs),
        'max': np.full(self._num_envs, -np.inf),
        'count': np.zeros(self._num_envs, np.int64),
      }
    log, known = self._logs[name], ~np.isnan(value)
    log['sum'] = np.where(first, 0.0, log['sum']) + np.where(known, value, 0.0)
    highest = np.where(first, -np.inf, log['max'])
    log['max'] = np.fmax(highest, value)
    log['count'] = np.where(first, 0, log['count']) + known
