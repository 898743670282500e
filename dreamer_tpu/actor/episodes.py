"""Scores and lengths of episodes, and statistics of their log keys."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamer_tpu.envs.observations import LOG


class Averages:
  """Running means of episode statistics, by name."""

  def __init__(self) -> None:
    self._totals: dict[str, list[float]] = {}  # Name: [sum, count].

  def add(self, stats: Mapping[str, float]) -> None:
    """Adds the 'stats' of one episode."""
    for name, value in stats.items():
      total = self._totals.setdefault(name, [0.0, 0])
      total[0] += value
      total[1] += 1

  def result(self) -> dict[str, float]:
    """Returns the means since the last call, and starts over."""
    totals, self._totals = self._totals, {}
    return {name: total / count for name, (total, count) in totals.items()}

  def state(self) -> dict[str, list[float]]:
    """Returns the state as JSON types, for `load`."""
    return {name: list(total) for name, total in self._totals.items()}

  def load(self, state: Mapping[str, list[float]]) -> None:
    """Restores what `state` returned."""
    self._totals = {name: list(total) for name, total in state.items()}


class EpisodeStats:
  """Accumulates scores, lengths and logs over the episodes of N environments.

  The score is the sum of rewards and the length is the number of actions. For
  each scalar observation 'log/NAME' the mean, maximum and sum over the episode
  are kept; NaN is skipped.
  """

  def __init__(self, num_envs: int):
    self._num_envs = num_envs
    self._stats: dict[str, Any] = {
      'score': np.zeros(num_envs, np.float64),
      'length': np.zeros(num_envs, np.int64),
      'logs': {},
    }

  def update(self, obs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Adds one vector step.

    Args:
      obs: Output of `VectorEnv.step`: 'reward' float32 [N], 'is_first' and
        'is_last' bool [N], 'log/NAME' float32 [N]. Other keys are ignored.

    Returns:
      The episodes that ended in this step, see `finished`.
    """
    first, stats = obs['is_first'], self._stats
    stats['score'] = np.where(first, 0.0, stats['score']) + obs['reward']
    stats['length'] = np.where(first, 0, stats['length'] + 1)
    for key, value in obs.items():
      if key.startswith(LOG) and np.ndim(value) == 1:
        self._update_log(key.removeprefix(LOG), value, first)
    return finished(stats, obs['is_last'])

  @property
  def length(self) -> np.ndarray:
    """Lengths of the current episodes, int64 [N]."""
    return self._stats['length']

  def episode(self, i: int) -> dict[str, Any]:
    """Returns an environment's episode as it is so far, see `finished`."""
    return _episode(self._stats, (i,))

  def _update_log(self, name: str, value: np.ndarray, first: np.ndarray):
    logs = self._stats['logs']
    if name not in logs:
      logs[name] = {
        'sum': np.zeros(self._num_envs),
        'max': np.full(self._num_envs, -np.inf),
        'count': np.zeros(self._num_envs, np.int64),
      }
    log, valid = logs[name], ~np.isnan(value)
    log['sum'] = np.where(first, 0.0, log['sum']) + np.where(valid, value, 0.0)
    log['max'] = np.fmax(np.where(first, -np.inf, log['max']), value)
    log['count'] = np.where(first, 0, log['count']) + valid


def finished(
  stats: Mapping[str, Any], last: np.ndarray
) -> list[dict[str, Any]]:
  """Returns the episodes that have ended, by step and environment.

  Args:
    stats: Statistics after each step, arrays [..., N] as those of
      `envs.functional.statistics`.
    last: Whether the step was the last of an episode, bool [..., N].

  Returns:
    A dict for each True in `last`, in the order of `np.argwhere`: 'env'
    (index), 'score' (float), 'length' (int), and 'stats', a dict of floats with
    'episode/score', 'episode/length' and 'epstats/NAME/{avg,max,sum}'.
  """
  return [_episode(stats, tuple(at)) for at in np.argwhere(last).tolist()]


def _episode(stats: Mapping[str, Any], at: tuple[int, ...]) -> dict[str, Any]:
  score, length = float(stats['score'][at]), int(stats['length'][at])
  result = {'episode/score': score, 'episode/length': float(length)}
  for name, log in stats['logs'].items():
    if count := int(log['count'][at]):
      result[f'epstats/{name}/avg'] = float(log['sum'][at]) / count
      result[f'epstats/{name}/max'] = float(log['max'][at])
      result[f'epstats/{name}/sum'] = float(log['sum'][at])
  return {'env': at[-1], 'score': score, 'length': length, 'stats': result}
