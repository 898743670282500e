"""Each suite against its simulator, stepped by hand."""

import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import dreamer_tpu.envs
from configs.base import base
from dreamer_tpu.envs import vector
from dreamer_tpu.errors import UserError


def config(**changes):
  env = base().env
  for key, value in changes.items():
    group, _, option = key.partition('__')
    env[group][option] = value
  return env


def random_action(space, rng):
  if isinstance(space, gymnasium.spaces.Discrete):
    return np.int32(rng.integers(space.n))
  return rng.uniform(-1, 1, space.shape).astype(np.float32)


def rollout(task, steps, num_envs=2, seed=0, env_config=None):
  """Takes random actions; returns the stacked steps and the actions."""
  env_config = env_config or config()
  env = dreamer_tpu.envs.make_vector(task, num_envs, seed, env_config)
  # The actions of an environment do not depend on the number of environments.
  rngs = [np.random.default_rng(i) for i in range(num_envs)]
  result, actions = [env.reset()], []
  for _ in range(steps):
    action = {
      key: np.stack([random_action(space, rng) for rng in rngs])
      for key, space in env.act_space.items()
    }
    actions.append(action['action'])
    result.append(env.step(action))
  env.close()
  for key, space in env.obs_space.items():
    assert result[-1][key].shape == (num_envs, *space.shape)
    assert result[-1][key].dtype == space.dtype
  keys = list(result[0])
  return {k: np.array([r[k] for r in result]) for k in keys}, actions


def assert_same(a, b):
  assert set(a) == set(b)
  for key in a:
    np.testing.assert_array_equal(a[key], b[key], err_msg=key)


# Atari


def area(image, height, width):
  """Averages areas, with fractions of pixels, as differences of integrals."""
  for size in (height, width):
    given = len(image)
    edges = np.arange(size + 1) * given / size
    pixel = np.minimum(edges.astype(int), given - 1)
    part = (edges - pixel)[:, None]
    integral = np.cumsum(image, 0)[pixel] - image[pixel] * (1 - part)
    image = np.diff(integral, axis=0).T * size / given
  return image


@pytest.mark.parametrize('game', ['pong', 'ms_pacman'])
def test_atari_is_ale(game):
  """Compares rewards, images and game over, with sticky actions."""
  import ale_py
  from ale_py import roms

  ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
  env_config = config(atari__noops=0)
  ours, actions = rollout(f'atari_{game}', 1000, 1, 5, env_config)
  ale = ale_py.ALEInterface()
  ale.setFloat('repeat_action_probability', 0.25)
  ale.setInt('random_seed', vector.seeds(5, 1)[0])
  ale.loadROM(roms.get_rom_path(game))
  ale.reset_game()
  legal = ale.getLegalActionSet()
  for i, action in enumerate(actions, 1):
    frames, reward = [], 0
    for _ in range(4):
      reward += ale.act(legal[action[0]])
      frames.append(ale.getScreenGrayscale())
      if ale.game_over():
        break
    over = ale.game_over()
    assert ours['reward'][i, 0] == reward
    assert ours['is_last'][i, 0] == ours['is_terminal'][i, 0] == over
    if over:
      break
    image = np.maximum(frames[-1], frames[-2]).astype(np.float64)
    error = np.abs(area(image, 96, 96) - ours['image'][i, 0, ..., 0]).max()
    assert error <= 0.51
  assert over
  assert ale.lives() == 0
  assert ours['is_first'][i + 1, 0]
  assert ours['reward'][i + 1, 0] == 0


def test_atari_time_limit():
  ours, _ = rollout('atari_pong', 60, env_config=config(atari__length=200))
  last = np.flatnonzero(ours['is_last'][:, 0])
  np.testing.assert_array_equal(last, [50])  # 200 frames, 4 per step.
  assert not ours['is_terminal'].any()
  np.testing.assert_array_equal(np.flatnonzero(ours['is_first'][:, 1]), [0, 51])


def test_atari_seeds():
  first, _ = rollout('atari_pong', 100)
  second, _ = rollout('atari_pong', 100)
  assert_same(first, second)
  assert (first['image'][:, 0] != first['image'][:, 1]).any()
  other, _ = rollout('atari_pong', 100, seed=1)
  assert (first['image'] != other['image']).any()


def test_atari_options():
  env_config = config(
    atari__size=(64, 80), atari__gray=False, atari__actions='minimal'
  )
  obs_space, act_space = dreamer_tpu.envs.spaces('atari_pong', env_config)
  assert obs_space['image'].shape == (64, 80, 3)
  assert act_space['action'].n == 6
  ours, _ = rollout('atari_pong', 3, env_config=env_config)
  background = ours['image'][-1, 0, 40, 40]
  np.testing.assert_allclose(background, [144, 72, 17], atol=2)  # Brown.


# DeepMind Control


def test_walker_is_dm_control():
  from dm_control import suite

  ours, actions = rollout(
    'dmc_walker_walk', 30, env_config=config(dmc__repeat=2)
  )
  assert ours['orientations'].shape == (31, 2, 14)
  assert ours['height'].shape == (31, 2)
  assert ours['velocity'].shape == (31, 2, 9)
  for row, seed in enumerate(vector.seeds(0, 2)):
    env = suite.load('walker', 'walk', {'random': seed})
    steps = [env.reset()]
    rewards = [0.0]
    for action in actions:
      pair = [env.step(action[row]) for _ in range(2)]
      steps.append(pair[1])
      rewards.append(pair[0].reward + pair[1].reward)
    for key in ('orientations', 'height', 'velocity'):
      expected = np.array([s.observation[key] for s in steps], np.float32)
      np.testing.assert_array_equal(ours[key][:, row], expected)
    np.testing.assert_array_equal(
      ours['reward'][:, row], np.array(rewards, np.float32)
    )


def test_dmc_time_limit():
  env_config = config(dmc__repeat=8)
  ours, _ = rollout('dmc_cartpole_balance', 128, env_config=env_config)
  last = np.flatnonzero(ours['is_last'][:, 0])
  np.testing.assert_array_equal(last, [125])  # 1000 steps.
  assert not ours['is_terminal'].any()


def test_dmc_termination():
  """A task that terminates in dm_control's loop is terminal."""
  from dm_control import suite
  from dm_control.rl import control

  class Ends(control.Task):
    """Terminates in step 3."""

    def __init__(self, task):
      self._task, self._count = task, 0

    def __getattr__(self, name):
      return getattr(self._task, name)

    def initialize_episode(self, physics):
      self._count = 0
      self._task.initialize_episode(physics)

    def before_step(self, action, physics):
      self._count += 1
      self._task.before_step(action, physics)

    def action_spec(self, physics):
      return self._task.action_spec(physics)

    def get_observation(self, physics):
      return self._task.get_observation(physics)

    def get_reward(self, physics):
      return self._task.get_reward(physics)

    def get_termination(self, physics):
      return 0.0 if self._count == 3 else None

  from dreamer_tpu.envs.suites import dmc

  env = dmc.ControlSuite('cartpole_balance', config().dmc)
  inner = suite.load('cartpole', 'balance')
  env._env = control.Environment(inner.physics, Ends(inner.task))
  env.reset()
  ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(3)]
  assert ends == [(False, False), (False, False), (True, False)]


def test_dmc_pixels():
  env_config = config(dmc__image=True, dmc__size=(48, 64))
  ours, actions = rollout('dmc_cartpole_swingup', 2, 1, env_config=env_config)
  assert ours['image'].shape == (3, 1, 48, 64, 3)
  assert ours['position'].shape == (3, 1, 3)
  from dm_control import suite

  env = suite.load('cartpole', 'swingup', {'random': vector.seeds(0, 1)[0]})
  env.reset()
  for action in actions:
    env.step(action[0])
  direct = env.physics.render(48, 64, 0)
  assert np.abs(ours['image'][-1, 0].astype(int) - direct).max() <= 2


def test_no_rendering_unless_an_image_is_asked_for():
  program = """
import sys
import dreamer_tpu.envs
from configs.base import base
env = dreamer_tpu.envs.make_vector('dmc_cartpole_swingup', 1, 0, base().env)
env.reset()
import os
loaded = [m for m in sys.modules if 'egl_' in m or m.startswith('OpenGL.')]
print(loaded, os.environ.get('MUJOCO_GL'), 'jax' in sys.modules)
"""
  environ = {k: v for k, v in os.environ.items() if k != 'MUJOCO_GL'}
  result = subprocess.run(
    [sys.executable, '-c', program],
    env=environ | {'PYTHONPATH': os.getcwd()},
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.strip() == '[] None False'
  assert 'GLFW' not in result.stderr


# Crafter


def test_crafter_in_two_processes():
  # Without sorting, the addresses of objects make Crafter differ after a while.
  first, _ = rollout('crafter_reward', 300, num_envs=2)
  second, _ = rollout('crafter_reward', 300, num_envs=1)
  assert_same({k: v[:, :1] for k, v in first.items()}, second)
  assert (first['image'][0, 0] != first['image'][0, 1]).any()
  achievements = [k for k in first if k.startswith('log/achievement_')]
  assert len(achievements) == 22
  assert first['log/achievement_collect_sapling'].dtype == np.float32


def test_crafter_rewards_and_death():
  """Achievements and health make the reward; death is terminal."""
  from dreamer_tpu.envs import wrappers
  from dreamer_tpu.envs.suites import crafter as ours

  env = wrappers.wrap(ours.Crafter('reward', config().crafter), 'crafter')
  assert env.action_space['action'].n == 17
  env.reset(seed=3)
  score, unlocked, terminated, steps = 0.0, 0, False, 0
  rng = np.random.default_rng(0)
  while not terminated:
    action = {'action': np.int32(rng.integers(17))}
    obs, reward, terminated, truncated, _ = env.step(action)
    score, steps = score + reward, steps + 1
    assert not truncated
  unlocked = sum(obs[k] > 0 for k in obs if k.startswith('log/'))
  # A step that unlocks any number of achievements gives 1; all health is lost.
  assert score == pytest.approx(unlocked - 0.9, abs=0.2)
  env.reset()
  assert env.step({'action': np.int32(0)})[2:4] == (False, False)


def test_crafter_time_limit():
  ours, _ = rollout(
    'crafter_reward', 5, num_envs=1, env_config=config(crafter__length=5)
  )
  np.testing.assert_array_equal(np.flatnonzero(ours['is_last'][:, 0]), [5])
  assert not ours['is_terminal'].any()


# Gymnasium


def test_cartpole_is_gymnasium():
  ours, actions = rollout('gym_CartPole-v1', 120)
  for row, seed in enumerate(vector.seeds(0, 2)):
    env = gymnasium.make('CartPole-v1')
    obs, _ = env.reset(seed=seed)
    reward, terminated, over, first = 0.0, False, False, True
    for i in range(121):
      np.testing.assert_array_equal(ours['vector'][i, row], obs)
      assert ours['reward'][i, row] == reward
      assert ours['is_terminal'][i, row] == terminated
      assert ours['is_last'][i, row] == over
      assert ours['is_first'][i, row] == first
      if i == 120:
        break
      first = over
      if over:
        obs, _ = env.reset()
        reward, terminated, over = 0.0, False, False
      else:
        step = env.step(actions[i][row])
        obs, reward, terminated = step[:3]
        over = terminated or step[3]
  assert ours['is_terminal'].sum() >= 4


def test_gym_options():
  env_config = config(gym__repeat=4, gym__length=20)
  ours, _ = rollout('gym_Pendulum-v1', 12, env_config=env_config)
  np.testing.assert_array_equal(np.flatnonzero(ours['is_last'][:, 0]), [5, 11])
  assert not ours['is_terminal'].any()
  blackjack, _ = dreamer_tpu.envs.spaces('gym_FrozenLake-v1', env_config)
  assert blackjack['vector'].n == 16
  with pytest.raises(UserError, match='Tuple'):
    dreamer_tpu.envs.spaces('gym_Blackjack-v1', env_config)


def test_gym_module():
  task = 'gym_ale_py:ALE/Pong-v5'
  env_config = config(gym__repeat=1)
  obs_space, act_space = dreamer_tpu.envs.spaces(task, env_config)
  assert obs_space['image'].shape == (64, 64, 3)
  assert act_space['action'].n == 6
  obs_space, _ = dreamer_tpu.envs.spaces(task, config(gym__size=(0, 0)))
  assert obs_space['image'].shape == (210, 160, 3)


# Names


@pytest.mark.parametrize(
  ('task', 'words'),
  [
    ('atary_pong', 'did you mean atari_pong'),
    ('pong', 'unknown suite'),
    ('atari', 'SUITE_NAME'),
    ('atari_pongg', 'did you mean atari_pong?'),
    ('atari_Pong', 'did you mean atari_pong?'),
    ('dmc_walker_wlak', 'did you mean dmc_walker_walk?'),
    ('dmc_cup_catch', 'did you mean dmc_ball_in_cup_catch?'),
    ('crafter_rewards', 'did you mean crafter_reward?'),
    ('gym_Cartpole-v1', 'did you mean gym_CartPole-v1?'),
    ('gym_nomodule:CartPole-v1', "module 'nomodule' is missing"),
    ('gym_ale_py:ALE/Pongo-v5', 'did you mean gym_ale_py:ALE/Pong-v5?'),
    ('gym_LunarLander-v3', '[Bb]ox2[Dd]'),
  ],
)
def test_unknown_tasks(task, words):
  with pytest.raises(UserError, match=words.replace('?', r'\?')) as info:
    dreamer_tpu.envs.make_vector(task, 1, 0, config())
  assert '\n' not in str(info.value)
  assert task in str(info.value)


def test_registered_suites():
  with pytest.raises(UserError, match='underscores'):
    dreamer_tpu.envs.register('my_suite', lambda name, config: None)
  dreamer_tpu.envs.register('nothing', lambda name, config: None)
  with pytest.raises(UserError, match=r'not a gymnasium\.Env'):
    dreamer_tpu.envs.spaces('nothing_x', config())
