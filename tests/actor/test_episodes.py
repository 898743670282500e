"""Episode statistics against a slow reference that keeps whole episodes."""

import json

import numpy as np
import pytest

from dreamer_tpu.actor.episodes import Averages, EpisodeStats


def steps(rng, num_envs, count):
  """Yields random steps in the format of `VectorEnv.step`."""
  last = np.zeros(num_envs, bool)
  first = np.ones(num_envs, bool)
  for _ in range(count):
    reward = rng.normal(size=num_envs).astype(np.float32)
    reward[first] = 0
    last = ~first & (rng.uniform(size=num_envs) < 0.2)
    noise = rng.normal(size=num_envs).astype(np.float32)
    noise[rng.uniform(size=num_envs) < 0.3] = np.nan
    yield {
      'reward': reward,
      'is_first': first,
      'is_last': last,
      'is_terminal': last,
      'log/noise': noise,
      'log/view': np.zeros((num_envs, 4, 4, 3), np.uint8),
      'vector': np.zeros((num_envs, 3), np.float32),
    }
    first = last


def test_against_whole_episodes():
  rng = np.random.default_rng(0)
  stats = EpisodeStats(3)
  running = [[] for _ in range(3)]
  expected, finished = [], []
  for obs in steps(rng, 3, 200):
    finished += stats.update(obs)
    for i, episode in enumerate(running):
      episode.append((float(obs['reward'][i]), float(obs['log/noise'][i])))
      if obs['is_last'][i]:
        expected.append((i, np.array(episode)))
        episode.clear()
  assert len(finished) == len(expected) > 50
  for ours, (row, episode) in zip(finished, expected, strict=True):
    assert ours['env'] == row
    assert ours['length'] == len(episode) - 1
    assert ours['score'] == pytest.approx(episode[:, 0].sum())
  logs = [episode[:, 1] for _, episode in expected]
  logs = [log[~np.isnan(log)] for log in logs]
  logs = [log for log in logs if log.size]
  averages = Averages()
  for episode in finished:
    averages.add(episode['stats'])
  result = averages.result()
  assert result == pytest.approx({
    'episode/score': np.mean([e[:, 0].sum() for _, e in expected]),
    'episode/length': np.mean([len(e) - 1 for _, e in expected]),
    'epstats/noise/avg': np.mean([log.mean() for log in logs]),
    'epstats/noise/max': np.mean([log.max() for log in logs]),
    'epstats/noise/sum': np.mean([log.sum() for log in logs]),
  })  # fmt: skip
  assert averages.result() == {}


def test_state_survives_json():
  averages, other = Averages(), Averages()
  for value in (1.0, 2.0, 6.0):
    averages.add({'episode/score': value})
  other.load(json.loads(json.dumps(averages.state())))
  assert other.result() == averages.result() == {'episode/score': 3.0}


def test_an_abandoned_episode_is_forgotten():
  stats = EpisodeStats(1)

  def step(reward, first=False, last=False):
    return stats.update({
      'reward': np.array([reward], np.float32),
      'is_first': np.array([first]),
      'is_last': np.array([last]),
      'log/x': np.array([reward], np.float32),
    })  # fmt: skip

  step(0, first=True)
  step(100)
  step(0, first=True)
  (episode,) = step(2, last=True)
  assert (episode['env'], episode['score'], episode['length']) == (0, 2.0, 1)
  assert episode['stats']['epstats/x/max'] == 2
