"""Evaluation counts the first episodes to start, long or short."""

import gymnasium
import numpy as np
import pytest

import dreamer_tpu.envs
from configs.base import base
from dreamer_tpu.actor.evaluation import evaluate, summarize
from dreamer_tpu.envs import vector, wrappers
from dreamer_tpu.envs.serial import Serial
from dreamer_tpu.envs.waiting import Patience
from tests.helpers.sample_envs import Shown

LENGTHS = (10, 1000)

dreamer_tpu.envs.register('shown', Shown)


class ShortOrLong(gymnasium.Env):
  """Random choice of two episode lengths, with a reward of 1 per step."""

  observation_space = gymnasium.spaces.Dict(
    image=gymnasium.spaces.Box(0, 255, (48, 48, 3), np.uint8)
  )
  action_space = gymnasium.spaces.Discrete(2)

  def __init__(self, lengths=LENGTHS):
    self._lengths = lengths

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self.length = self._lengths[self.np_random.integers(2)]
    self._step = 0
    return self._obs(), {}

  def step(self, action):
    self._step += 1
    info = {'log/length': float(self.length)}
    return self._obs(), 1.0, self._step == self.length, False, info

  def _obs(self):
    return {'image': np.full((48, 48, 3), min(self._step, 255), np.uint8)}


def make(num_envs, seed=0, lengths=LENGTHS):
  makers = [lambda: wrappers.Converted(ShortOrLong(lengths))] * num_envs
  env = Serial(makers, 'lengths', 0, Patience(0))
  return vector.GymVector(env, 'lengths', seed)


def zeros(obs):
  """Returns zero actions and latents."""
  action = np.zeros(len(obs['reward']), np.int32)
  return {'action': action}, {'latent/x': action.astype(np.float32)}


def started(slot, count, seed=0):
  """Returns the lengths of the first episodes of one environment."""
  env = ShortOrLong()
  lengths = []
  for number in range(count):
    seeds = vector.seeds(seed, slot + 1)
    env.reset(seed=seeds[slot] if number == 0 else None)
    lengths.append(env.length)
  return lengths


def test_the_first_that_start():
  result = evaluate(make(3), zeros, 7)
  expected = [
    {'env': slot, 'score': float(length), 'length': length}
    for slot, count in enumerate((3, 2, 2))
    for length in started(slot, count)
  ]
  assert {e['length'] for e in expected} == set(LENGTHS)
  for episode in result.episodes:
    assert episode.pop('stats')['episode/score'] == episode['score']
  assert result.episodes == expected
  assert result.complete
  metrics = evaluate(make(3), zeros, 7).metrics()
  lengths = [e['length'] for e in expected]
  assert metrics['episode/score'] == pytest.approx(np.mean(lengths))
  assert metrics['episode/length'] == pytest.approx(np.mean(lengths))
  assert metrics['episode/score_median'] == np.median(lengths)
  assert metrics['epstats/length/avg'] == pytest.approx(np.mean(lengths))


def test_the_mean_has_no_bias():
  env = make(8, seed=1, lengths=(5, 100))
  played = []
  for _ in range(20):
    played += evaluate(env, zeros, 8).episodes
  metrics = summarize(played)
  assert metrics['episode/count'] == 160
  error = metrics['episode/score'] - 52.5
  assert abs(error) < 3 * metrics['episode/score_sem']
  # Counting the first episodes to end would favor short ones.
  others = []
  for _ in range(20):
    others += first_to_end(env, 8)
  assert np.mean(others) < 52.5 - 5 * metrics['episode/score_sem']


def first_to_end(env, episodes):
  lengths, now = [], np.zeros(env.num_envs, int)
  obs = env.reset()
  while len(lengths) < episodes:
    now = np.where(obs['is_first'], 0, now + 1)
    lengths += now[obs['is_last']].tolist()
    obs = env.step({'action': np.zeros(env.num_envs, int)})
  return lengths[:episodes]


def test_environments_are_reset_and_all_is_stored():
  env = make(2)
  stored = []
  evaluate(env, zeros, 2, store=stored.append)
  begin = len(stored)
  evaluate(env, zeros, 2, store=stored.append)
  for steps in (stored[:begin], stored[begin:]):
    assert steps[0]['is_first'].all()
    assert not steps[1]['is_first'].any()
    ends = np.stack([step['is_last'] for step in steps])
    assert ends.any(0).all()
    assert ends[-1].any()
    assert set(steps[0]) == {
      *('image', 'reward', 'is_first', 'is_last', 'is_terminal'),
      *('action', 'latent/x'),
    }


def test_videos_are_of_first_episodes():
  env = make(4)
  result = evaluate(env, zeros, 8, record=3)
  assert set(result.videos) == {f'image/{slot}' for slot in range(3)}
  for slot in range(3):
    (length,) = started(slot, 1)
    video = result.videos[f'image/{slot}']
    # With the observation before the first action.
    expected = np.minimum(np.arange(min(length + 1, 1000)), 255)
    np.testing.assert_array_equal(video[:, 0, 0, 0], expected)
  assert evaluate(env, zeros, 4).videos == {}


def shown(level, stepping='auto', render=True):
  """Returns two environments that may be rendered."""
  config = base().env
  config.stepping = stepping
  config.timeout = 3 if level == 'hang' else 60
  task = f'shown_{level}'
  return dreamer_tpu.envs.make_vector(task, 2, 0, config, render=render)


@pytest.mark.parametrize('stepping', ['serial', 'workers'])
def test_videos_without_images(stepping):
  env, seen = shown('works', stepping), []
  for _ in range(2):
    result = evaluate(env, zeros, 4, record=1, store=seen.append)
    assert set(result.videos) == {'render/0'}
    video = result.videos['render/0']
    assert video.shape == (5, 64, 128, 3)
    np.testing.assert_array_equal(video[:, 0, 0, 0], [0, 50, 100, 150, 200])
  # Only its first episode is rendered, and no other environment.
  rendered = np.array([step['vector'] for step in seen])
  np.testing.assert_array_equal(rendered[-1], [10, 0])
  first = [0, 1, 2, 3, 4, 5, 5, 5, 5, 5]
  np.testing.assert_array_equal(rendered[:10, 0], first)
  env.close()


def test_videos_that_nobody_asked_for():
  env = shown('raise', 'serial', render=False)
  assert evaluate(env, zeros, 2, record=2).videos == {}
  env.close()


@pytest.mark.parametrize(
  ('level', 'stepping', 'reason', 'restarts'),
  [
    ('raise', 'serial', 'render() raises LookupError: no screen', 0),
    ('none', 'serial', 'render() returns NoneType, not uint8', 0),
    ('exit', 'workers', 'its process died with exit code 3', 1),
    ('hang', 'workers', 'no answer for 3 s', 1),
    ('hang', 'serial', 'no answer for 3 s', 1),
  ],
)
def test_a_video_that_breaks_off(level, stepping, reason, restarts, caplog):
  env = shown(level, stepping)
  for _ in range(2):
    result = evaluate(env, zeros, 4, record=1)
    assert result.complete
    assert [x['length'] for x in result.episodes] == [4] * 4
  told = [x for x in caplog.messages if 'there is no video' in x]
  assert len(told) == 1
  assert reason in told[0]
  assert env.restarts == restarts
  env.close()


def test_stops_when_told():
  calls = []
  result = evaluate(
    make(2), zeros, 100, stop=lambda: calls.append(0) or len(calls) > 50
  )
  assert len(calls) == 51
  assert not result.complete
  assert len(result.episodes) < 100


def test_episodes_that_do_not_end_in_time_are_counted_apart():
  """The episodes of a slot are short until its first long one."""
  steps = []
  result = evaluate(
    make(3),
    zeros,
    12,
    length=100,
    stepped=lambda step, ended: steps.append((step, ended)),
  )
  expected = []
  for slot in range(3):
    lengths = started(slot, 4)
    expected += lengths[: lengths.index(1000)] if 1000 in lengths else lengths
  assert 1000 in {x for slot in range(3) for x in started(slot, 4)}
  assert sorted(x['length'] for x in result.episodes) == sorted(expected)
  assert result.complete
  late = result.unfinished
  assert late
  assert {(x['length'], x['score']) for x in late} == {(100, 100.0)}
  assert [step for step, _ in steps] == list(range(len(steps)))
  assert steps[-1][1] == len(expected)
  metrics = result.metrics()
  assert metrics['episode/count'] == len(expected)
  assert metrics['unfinished/count'] == len(late)
  assert metrics['unfinished/score'] == 100


def test_an_evaluation_without_an_end():
  result = evaluate(make(2, lengths=(10**6, 10**6)), zeros, 4, length=50)
  assert result.complete
  assert result.metrics() == {
    'episode/count': 0,
    'unfinished/count': 2,
    'unfinished/score': 50,
  }


def episode(score):
  return {'score': score, 'stats': {'episode/score': score}}


def test_summary_of_few_episodes():
  assert summarize([]) == {'episode/count': 0.0}
  assert summarize([episode(3.0)]) == {
    'episode/score': 3.0,
    'episode/count': 1.0,
    'episode/score_median': 3.0,
  }
  both = summarize([episode(1.0), episode(3.0)])
  assert both['episode/score_sem'] == pytest.approx(1.0)
