"""Scores, lengths and logs of episodes, computed inside programs.

The same as `actor.episodes.EpisodeStats`. Sums are rounded to float32 once, as
what each addition loses is added to the next value (Kahan).
"""

from typing import Any

import jax.numpy as jnp

from dreamer_tpu.envs.observations import LOG

Obs = dict[str, Any]
Stats = dict[str, Any]


def start(obs: Obs) -> Stats:
  """Returns the statistics after a reset.

  Args:
    obs: Output of `Vector.reset`.

  Returns:
    'score' float32 [N], 'length' int32 [N], and 'logs', with 'sum', 'max' and
    'count' [N] for each NAME of a scalar 'log/NAME'; 'lost' float32 [N] is what
    'score' or 'sum' has too much.
  """
  reward = obs['reward']
  none = {
    'sum': jnp.zeros_like(reward),
    'lost': jnp.zeros_like(reward),
    'max': jnp.full_like(reward, -jnp.inf),
    'count': jnp.zeros(reward.shape, jnp.int32),
  }
  blank = {
    'score': jnp.zeros_like(reward),
    'lost': jnp.zeros_like(reward),
    'length': jnp.zeros(reward.shape, jnp.int32),
    'logs': dict.fromkeys(_logs(obs), none),
  }
  return update(blank, obs)


def update(stats: Stats, obs: Obs) -> Stats:
  """Returns the statistics after a step.

  At the last step of an episode they are those of the whole episode.

  Args:
    stats: Statistics before the step.
    obs: Output of `Vector.step`.
  """
  first = obs['is_first']
  score, lost = (jnp.where(first, 0, stats[key]) for key in ('score', 'lost'))
  score, lost = _add(score, lost, obs['reward'])
  return {
    'score': score,
    'lost': lost,
    'length': jnp.where(first, 0, stats['length'] + 1),
    'logs': {
      name: _update_log(stats['logs'][name], value, first)
      for name, value in _logs(obs).items()
    },
  }


def _logs(obs: Obs) -> Obs:
  return {
    key.removeprefix(LOG): value
    for key, value in obs.items()
    if key.startswith(LOG) and value.ndim == 1
  }


def _update_log(log: Stats, value: Any, first: Any) -> Stats:
  valid = ~jnp.isnan(value)
  total, lost = (jnp.where(first, 0, log[key]) for key in ('sum', 'lost'))
  total, lost = _add(total, lost, jnp.where(valid, value, 0))
  most = jnp.where(first, -jnp.inf, log['max'])
  return {
    'sum': total,
    'lost': lost,
    'max': jnp.fmax(most, value),
    'count': jnp.where(first, 0, log['count']) + valid,
  }


def _add(total: Any, lost: Any, value: Any) -> tuple[Any, Any]:
  """Returns the sum after an addition, and what it then has too much."""
  value = value - lost
  after = total + value
  return after, jnp.where(jnp.isfinite(after), (after - total) - value, 0)
