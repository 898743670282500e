"""Suites of dm_env against their own interface, stepped by an obvious loop."""

import functools
import importlib.util
import os
import re
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import dreamer_tpu.envs
from configs.base import base
from dreamer_tpu.envs import vector
from dreamer_tpu.envs.from_dm import FromDM
from dreamer_tpu.envs.importing import import_module
from dreamer_tpu.errors import UserError

# The first import of dm_control in a process decides whether it can render.
os.environ.setdefault('MUJOCO_GL', 'egl')

needs_bsuite = pytest.mark.skipif(
  not importlib.util.find_spec('bsuite'), reason='pip install .[bsuite]'
)
needs_memmaze = pytest.mark.skipif(
  not importlib.util.find_spec('memory_maze'), reason='pip install .[memmaze]'
)


def make_vector(task, num_envs=1, seed=0, role='train', stepping='auto', **env):
  """Makes a task's environments; options are such as dmc__repeat=2."""
  config = base().env
  config.stepping = stepping
  for key, value in env.items():
    group, option = key.split('__')
    config[group][option] = value
  return dreamer_tpu.envs.make_vector(task, num_envs, seed, config, role=role)


def rollout(env, steps, rng):
  """Takes random actions; returns the steps and the actions."""
  with_actions = [(env.reset(), None)]
  for _ in range(steps):
    action = {}
    for key, space in env.act_space.items():
      if isinstance(space, gymnasium.spaces.Discrete):
        action[key] = rng.integers(space.n, size=env.num_envs)
      else:
        shape = (env.num_envs, *space.shape)
        action[key] = rng.uniform(-1, 1, shape).astype(np.float32)
    with_actions.append((env.step(action), action))
  env.close()
  return with_actions


def assert_is(ours, make, key, row=0, tolerance=0.0):
  """Compares a rollout with the environment itself.

  Args:
    ours: Result of `rollout`.
    make: Function that makes the environment of dm_env.
    key: Key of the action, and of observations that are no dict.
    row: Number of the environment.
    tolerance: Maximum difference of observations.
  """
  env, last, ends = make(), True, 0
  for obs, action in ours:
    if last:
      timestep = env.reset()
    else:
      own = env.action_spec()
      value = action['action'][row]
      if not hasattr(own, 'num_values'):
        low, high = own.minimum, own.maximum
        value = value.astype(float) * (high - low) / 2 + (high + low) / 2
      timestep = env.step(value)
    seen = timestep.observation
    for name, part in (seen if hasattr(seen, 'items') else {key: seen}).items():
      difference = np.abs(obs[name][row] - np.asarray(part, np.float32))
      assert difference.max(initial=0) <= tolerance, name
    assert obs['reward'][row] == np.float32(timestep.reward or 0)
    assert obs['is_first'][row] == timestep.first()
    assert obs['is_last'][row] == timestep.last()
    terminal = timestep.last() and timestep.discount == 0
    assert obs['is_terminal'][row] == terminal
    last = timestep.last()
    ends += last
  env.close()
  return ends


# Any environment


COUNTER = """
import dm_env
import numpy as np
from dm_env import specs


class Counter(dm_env.Environment):
  '''Counts from the seed; an episode has three steps.'''

  def __init__(self, seed=0, *, index=9, role='none', discount=0.0):
    self.seed, self.index, self.discount = seed, index, discount
    self.role = role
    self.count = 0

  def observation_spec(self):
    return {
      'inside': {
        'bounded': specs.BoundedArray((2,), np.float64, [0, -1], 5),
        'discrete': specs.DiscreteArray(4, np.int32),
      },
      'pair': (specs.Array((), bool), specs.Array((3,), np.int16)),
      'picture': specs.BoundedArray((24, 24, 3), np.uint8, 0, 255),
      'text': specs.StringArray(()),
      'empty': specs.Array((0,), np.float32),
      'number': specs.Array((), np.float32),
    }

  def action_spec(self):
    return {
      'go': specs.BoundedArray((2,), np.float64, [0, -10], [1, 10]),
      'turn': specs.DiscreteArray(3),
    }

  def observe(self):
    return {
      'inside': {
        'bounded': np.array([self.count, -1.0]),
        'discrete': np.int32(self.count),
      },
      'pair': (np.bool_(self.count), np.array([1, 2, 3], np.int16)),
      'picture': np.full((24, 24, 3), self.count, np.uint8),
      'text': 'go',
      'empty': np.zeros(0, np.float32),
      'number': np.float32((self.seed or 0) % 1000 + self.index / 10),
    }

  def reset(self):
    self.count = 0
    return dm_env.restart(self.observe())

  def step(self, action):
    self.count += 1
    reward = float(action['go'][1]) + 100 * int(action['turn'])
    kind = dm_env.StepType.LAST if self.count == 3 else dm_env.StepType.MID
    discount = self.discount if self.count == 3 else 1.0
    return dm_env.TimeStep(kind, reward, discount, self.observe())


def number():
  return 3
"""


@pytest.fixture
def counter(tmp_path, monkeypatch):
  """Returns the task of an environment in a module of the current folder."""
  (tmp_path / 'counter_dm.py').write_text(COUNTER)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  yield 'dm_counter_dm:Counter'
  sys.modules.pop('counter_dm', None)


def test_any_dm_env(counter):
  kwargs = '{"discount": 0.5}'
  env = make_vector(counter, 2, 0, 'eval', 'serial', dm__kwargs=kwargs)
  space = env.obs_space
  bounded = space['inside/bounded']
  np.testing.assert_array_equal(bounded.low, [0, -1])
  np.testing.assert_array_equal(bounded.high, [5, 5])
  assert space['inside/discrete'].n == 4
  assert space['pair/0'].n == 2
  assert space['pair/1'].shape == (3,)
  assert space['picture'].shape == (64, 64, 3)
  assert not {'text', 'empty'} & set(space)
  obs = env.reset()
  first = [seed % 1000 for seed in vector.seeds(0, 2)]
  np.testing.assert_allclose(obs['number'], [first[0], first[1] + 0.1])
  action = {
    'go': np.array([[0, 0.5], [1, -1]], np.float32),
    'turn': np.array([2, 0], np.int32),
  }
  rest = [env.step(action) for _ in range(4)]
  np.testing.assert_array_equal(rest[0]['reward'], [205, -10])
  np.testing.assert_array_equal([x['is_last'][0] for x in rest], [0, 0, 1, 0])
  assert not any(x['is_terminal'].any() for x in rest)
  assert rest[3]['is_first'].all()
  np.testing.assert_array_equal(rest[3]['reward'], [0, 0])
  env.close()
  env = make_vector(counter, 1, stepping='serial', dm__repeat=2)
  env.reset()
  one = {key: value[:1] for key, value in action.items()}
  steps = [env.step(one) for _ in range(2)]
  assert [x['reward'] for x in steps] == [[410], [205]]
  assert steps[1]['is_terminal'].all()
  env.close()


def test_spaces_of_dm_env_hold_what_it_returns(counter):
  module = import_module('counter_dm')
  env = FromDM(module.Counter(seed=1))
  check_env(env, skip_render_check=True)


@pytest.mark.parametrize(
  ('task', 'kwargs', 'words'),
  [
    ('dm_counter_dm:Count', '{}', 'did you mean dm_counter_dm:Counter?'),
    ('dm_counter_dm', '{}', 'write it as dm_MODULE:FUNCTION'),
    ('dm_:Counter', '{}', 'write it as dm_MODULE:FUNCTION'),
    ('dm_nomodule:f', '{}', "module 'nomodule' is missing"),
    ('dm_counter_dm:Counter', '{"a": 1}', "argument 'a' (see env.dm.kwargs)"),
    ('dm_counter_dm:number', '{}', 'it makes int, not a dm_env.Environment'),
  ],
)
def test_mistakes_are_one_line(counter, task, kwargs, words):
  with pytest.raises(UserError, match=re.escape(words)) as info:
    make_vector(task, stepping='serial', dm__kwargs=kwargs)
  assert '\n' not in str(info.value)


def test_a_function_of_dm_control():
  from dm_control.suite import cartpole

  env = make_vector('dm_dm_control.suite.cartpole:balance', 2)
  ours = rollout(env, 20, np.random.default_rng(0))
  for row, seed in enumerate(vector.seeds(0, 2)):
    assert_is(ours, lambda seed=seed: cartpole.balance(random=seed), '', row)


# DeepMind Control


@pytest.mark.parametrize(
  ('task', 'key', 'shape', 'actions'),
  [
    ('dog_walk', 'joint_angles', (73,), 38),
    ('humanoid_CMU_stand', 'velocity', (62,), 56),
    ('manip_reach_site', 'target_position', (1, 3), 9),
    ('rodent_two_touch', 'walker/world_zaxis', (3,), 38),
    ('cmu_humanoid_run_gaps', 'walker/world_zaxis', (3,), 56),
  ],
)
def test_other_domains(task, key, shape, actions):
  env = make_vector(f'dmc_{task}')
  assert env.obs_space[key].shape == shape
  assert env.act_space['action'].shape == (actions,)
  assert not [k for k, v in env.obs_space.items() if len(v.shape or ()) == 3]
  for obs, _ in rollout(env, 2, np.random.default_rng(0)):
    assert np.isfinite(obs[key]).all()


def test_cameras_of_manipulation():
  options = dict(dmc__image=True, dmc__size=(48, 64))
  env = make_vector('dmc_manip_reach_site', **options)
  assert env.obs_space['front_close'].shape == (48, 64, 3)
  assert 'target_position' not in env.obs_space
  ours = rollout(env, 1, np.random.default_rng(0))
  assert ours[1][0]['front_close'].std() > 5
  env = make_vector(
    'dmc_manip_reach_site', dmc__proprio=False, dmc__camera=0, **options
  )
  assert set(env.obs_space) == {'image'}
  env.close()


def test_unknown_manipulation():
  words = 'did you mean dmc_manip_reach_site?'
  with pytest.raises(UserError, match=re.escape(words)):
    make_vector('dmc_manip_reach_sight')


# Locomotion mazes


def test_arenas_are_closed():
  """From the start, the goal can be reached and the outside cannot."""
  from dreamer_tpu.envs.suites import loconav

  for arena in loconav.ARENAS:
    lines = loconav.layout(arena).splitlines()
    cells = {
      (y, x): value
      for y, line in enumerate(lines)
      for x, value in enumerate(line)
    }
    start = next(k for k, v in cells.items() if v == 'P')
    inside, border = set(), [start]
    while border:
      y, x = border.pop()
      assert (y, x) in cells, f'{arena} is open at {y}, {x}'
      if (y, x) in inside or cells[y, x] not in ' PG':
        continue
      inside.add((y, x))
      border += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    assert any(cells[cell] == 'G' for cell in inside), arena


def test_goal_of_a_maze():
  from dreamer_tpu.envs.suites import loconav

  config = base().env.loconav
  config.image = False
  env = loconav.LocoNav('ant_maze_s_5hz', config)
  env.reset(seed=0)
  action = np.zeros(env.action_space.shape)
  obs, reward, *_, info = env.step(action)
  assert not [key for key in obs if 'camera' in key]
  assert (reward, info['log/coverage']) == (0, 1)
  goal = env.dm.task._target_position
  env._walker.set_pose(env.dm.physics, [*goal[:2], 1.0])
  steps = [env.step(action) for _ in range(299)]
  rewards = np.array([step[1] for step in steps])
  first = np.flatnonzero(rewards)[0]
  assert first < 5
  assert (rewards[first:] == 1).all()
  assert steps[-1][4]['log/coverage'] > 1
  assert [step[2:4] for step in steps[-2:]] == [(False, False), (False, True)]
  env.close()


@pytest.mark.parametrize('hz', [3, 7, 50, 333])
def test_an_action_takes_the_time_that_the_frequency_says(hz):
  from dreamer_tpu.envs.suites import loconav

  config = base().env.loconav
  config.image = False
  env = loconav.LocoNav(f'ant_empty_{hz}hz', config)
  env.reset(seed=0)
  before = env.dm.physics.time()
  env.step(np.zeros(env.action_space.shape))
  assert env.dm.physics.time() - before == pytest.approx(1 / hz)
  assert 4 <= 1 / hz / env.dm.task.physics_timestep < 51
  env.close()


@pytest.mark.parametrize(
  ('body', 'actions'), [('quadruped', 12), ('humanoid', 56)]
)
def test_bodies(body, actions):
  from dreamer_tpu.envs.suites import loconav

  env = loconav.LocoNav(f'{body}_empty_20hz', base().env.loconav)
  assert env.action_space.shape == (actions,)
  episodes = []
  for seed in (0, 0, 1):
    first, _ = env.reset(seed=seed)
    second = env.step(np.full(actions, 0.1))[0]
    assert second in env.observation_space
    episodes.append({**first, **{f'{k}/2': v for k, v in second.items()}})
  env.close()
  for key, value in episodes[0].items():
    np.testing.assert_array_equal(value, episodes[1][key], err_msg=key)
  key = 'walker/egocentric_camera'
  assert episodes[0][key].shape == (64, 64, 3)
  assert (episodes[0][key] != episodes[2][key]).any()


# BSuite


@needs_bsuite
@pytest.mark.parametrize(
  ('task', 'kwargs', 'ends'),
  [
    ('catch/0', {}, 22),
    ('cartpole_noise/8', {'noise_scale': 1.0}, 1),
    ('deep_sea/0', {'size': 10, 'mapping_seed': 42}, 20),
    (
      'deep_sea_stochastic/0',
      {'size': 10, 'mapping_seed': 42, 'deterministic': False},
      20,
    ),
    ('memory_len/3', {'memory_length': 4}, 30),
  ],
)
def test_bsuite_is_bsuite(task, kwargs, ends):
  from bsuite import bsuite

  experiment = task.split('/')[0].replace('_stochastic', '')
  ours = rollout(
    make_vector(f'bsuite_{task}', 2), 220, np.random.default_rng(0)
  )
  for row, seed in enumerate(vector.seeds(0, 2)):
    own = kwargs | {'seed': seed}
    make = functools.partial(bsuite.load, experiment, own)
    assert assert_is(ours, make, 'vector', row) >= ends


@needs_bsuite
def test_bsuite_scores(tmp_path):
  from bsuite.experiments.catch import analysis
  from bsuite.logging import csv_load

  folder = str(tmp_path / 'regret')
  for _ in range(2):
    env = make_vector('bsuite_catch/0', 2, bsuite__folder=folder)
    rollout(env, 200, np.random.default_rng(0))
  folders = sorted(x.name for x in (tmp_path / 'regret').iterdir())
  assert folders == ['train0', 'train0.2', 'train1', 'train1.2']
  table, _ = csv_load.load_bsuite(f'{folder}/train0')
  last = table.iloc[-1]
  assert (last.bsuite_id, last.episode, last.steps) == ('catch/0', 20, 180)
  assert last.total_regret == last.episode - last.total_return
  assert 0 <= analysis.score(table) <= 1


@needs_bsuite
def test_all_experiments_of_bsuite(monkeypatch):
  from bsuite import sweep
  from bsuite.utils import datasets

  def offline(*args, **kwargs):
    raise OSError('no route to host')

  monkeypatch.setattr(datasets, '_download', offline)
  seen = set()
  for name in sweep.SWEEP:
    experiment, _, setting = name.partition('/')
    if setting not in ('0', '19'):
      continue
    seen.add(experiment)
    if experiment.startswith('mnist'):
      with pytest.raises(UserError, match=r'cannot be read \(no route to host'):
        make_vector(f'bsuite_{name}')
    else:
      rollout(make_vector(f'bsuite_{name}'), 2, np.random.default_rng(0))
  assert len(seen) == 23


# Memory Maze


@needs_memmaze
def test_memory_maze_is_memory_maze():
  from dreamer_tpu.envs.suites import memmaze

  env = make_vector('memmaze_9x9', stepping='serial')
  assert env.act_space['action'].n == 6
  ours = rollout(env, 20, np.random.default_rng(0))
  seed = vector.seeds(0, 1)[0]
  tasks = memmaze.load_tasks()
  make = lambda: tasks.memory_maze_9x9(seed=seed, image_only_obs=True)
  assert_is(ours, make, 'image', tolerance=2)


@needs_memmaze
def test_variants_of_memory_maze():
  from dreamer_tpu.envs.suites import memmaze

  env = memmaze.make('9x9-ExtraObs', base().env.memmaze)
  obs, _ = env.reset()
  assert obs in env.observation_space
  assert obs['maze_layout'].shape == (9, 9)
  assert (obs['targets_pos'] < 9).all()
  env.close()
