"""Scores and lengths of episodes, and statistics of what they logged."""

from collections.abc import Mapping
from typing import Any

import numpy as np

LOG = 'log/'


class EpisodeStats:
  """Follows the episodes of N environments and averages the finished ones.

  An episode's score is the sum of its rewards, its length the number of
  actions in it. Of each scalar observation 'log/NAME' the average, maximum
  and sum over the steps of an episode are kept; NaN is left out.
  """

  def __init__(self, num_envs: int):
    self._num_envs = num_envs
    self._score = np.zeros(num_envs, np.float64)
    self._length = np.zeros(num_envs, np.int64)
    self._logs: dict[str, dict[str, np.ndarray]] = {}
    self._totals: dict[str, list[float]] = {}  # Name: [sum, count].

  def update(self, obs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Takes one vector step.

    Args:
      obs: what the environments returned: 'reward' float32 [N], 'is_first' and
        'is_last' bool [N], 'log/NAME' [N] (others are left alone).

    Returns:
      One dict per episode that ended in this step, by environment: 'env' (its
      index), 'score' (float), 'length' (int).
    """
    first, last = obs['is_first'], obs['is_last']
    self._score = np.where(first, 0.0, self._score) + obs['reward']
    self._length = np.where(first, 0, self._length + 1)
    for key, value in obs.items():
      if key.startswith(LOG) and np.ndim(value) == 1:
        self._update_log(key.removeprefix(LOG), value, first)
    finished = []
    for i in np.flatnonzero(last).tolist():
      score, length = float(self._score[i]), int(self._length[i])
      self._add('episode/score', score)
      self._add('episode/length', length)
      self._finish_logs(i)
      finished.append({'env': i, 'score': score, 'length': length})
    return finished

  def result(self) -> dict[str, float]:
    """Averages over the episodes finished since the last call.

    Returns:
      'episode/score', 'episode/length', 'epstats/NAME/{avg,max,sum}'; empty if
      no episode has finished.
    """
    result = {
      name: total / count for name, (total, count) in self._totals.items()
    }
    self._totals = {}
    return result

  def state(self) -> dict[str, Any]:
    """What `load` restores: JSON types only. Unfinished episodes are not in it,
    since environments start anew when a run is resumed."""
    return {'totals': {name: list(v) for name, v in self._totals.items()}}

  def load(self, state: Mapping[str, Any]) -> None:
    """Restores what `state` returned; episodes begin anew."""
    self._totals = {
      name: [float(total), int(count)]
      for name, (total, count) in state['totals'].items()
    }
    self._score[:] = 0.0
    self._length[:] = 0
    self._logs = {}

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

  def _finish_logs(self, i: int) -> None:
    for name, log in self._logs.items():
      count = int(log['count'][i])
      if count:
        self._add(f'epstats/{name}/avg', float(log['sum'][i]) / count)
        self._add(f'epstats/{name}/max', float(log['max'][i]))
        self._add(f'epstats/{name}/sum', float(log['sum'][i]))

  def _add(self, name: str, value: float) -> None:
    total = self._totals.setdefault(name, [0.0, 0])
    total[0] += value
    total[1] += 1
