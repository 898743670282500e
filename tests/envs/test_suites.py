"""Each suite against its simulator, stepped by hand."""

import os
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

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
    actions.append(next(iter(action.values())))
    result.append(env.step(action))
  env.close()
  for key, space in env.obs_space.items():
    assert result[-1][key].shape == (num_envs, *space.shape)
    assert result[-1][key].dtype == space.dtype
  keys = list(result[0])
  return {k: np.array([r[k] for r in result]) for k in keys}, actions


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

  env = dmc.make('cartpole_balance', config().dmc)
  inner = suite.load('cartpole', 'balance')
  env.dm = control.Environment(inner.physics, Ends(inner.task))
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


def screenshots(task, **kwargs):
  """Returns the screenshots after a reset, and the environment."""
  env = dreamer_tpu.envs.make_vector(task, 1, 0, config(**kwargs), render=True)
  env.reset()
  return env.screenshots([0]), env


def test_dmc_without_images_can_be_rendered(monkeypatch, caplog):
  from dm_control import suite

  shown, env = screenshots('dmc_cartpole_swingup')
  env.close()
  direct = suite.load('cartpole', 'swingup', {'random': vector.seeds(0, 1)[0]})
  direct.reset()
  # Ours has hard edges, no shadows and no reflections.
  difference = shown[0].astype(int) - direct.physics.render(128, 128, 0)
  assert np.abs(difference).mean() < 2
  assert not caplog.messages
  # Without graphics it works as well, but for pictures.
  monkeypatch.setenv('PYOPENGL_PLATFORM', 'wrong')
  shown, env = screenshots('dmc_cartpole_swingup')
  assert shown == {}
  assert len(caplog.messages) == 1
  assert 'No OpenGL rendering backend is available' in caplog.messages[0]
  assert env.step({'action': np.zeros((1, 1), np.float32)})['reward'] >= 0
  env.close()


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


def test_crafter_rewards_and_death():
  """Achievements and health make the reward; death is terminal."""
  from dreamer_tpu.envs import wrappers
  from dreamer_tpu.envs.suites import crafter as ours

  env = wrappers.Converted(ours.Crafter('reward', config().crafter))
  assert env.action_space['action'].n == 17
  env.reset(seed=3)
  score, terminated = 0.0, False
  rng = np.random.default_rng(0)
  while not terminated:
    action = {'action': np.int32(rng.integers(17))}
    obs, reward, terminated, truncated, _ = env.step(action)
    score += reward
    assert not truncated
  counts = [obs[k] for k in obs if k.startswith('log/achievement_')]
  assert len(counts) == 22
  unlocked = sum(count > 0 for count in counts)
  # A step that unlocks any number of achievements gives 1; all health is lost.
  assert score == pytest.approx(unlocked - 0.9, abs=0.2)
  env.reset()
  assert env.step({'action': np.int32(0)})[2:4] == (False, False)


# Dummy and pin pad


def test_dummy():
  ours, _ = rollout('dummy_disc', 5, env_config=config(dummy__length=3))
  count = [0, 1, 2, 3, 0, 1]
  np.testing.assert_array_equal(ours['count'][:, 0], count)
  np.testing.assert_array_equal(ours['reward'][:, 0], np.sign(count))
  np.testing.assert_array_equal(ours['is_terminal'][:, 1], np.equal(count, 3))
  disc = dreamer_tpu.envs.spaces('dummy_disc', config())
  cont = dreamer_tpu.envs.spaces('dummy_cont', config())
  shapes = {k: v.shape for k, v in disc[0].items()}
  assert shapes == {
    'image': (64, 64, 3),
    'vector': (7,),
    'token': (),
    'count': (),
    'float2d': (4, 5),
    'int2d': (2, 3),
  }
  assert cont[0] == disc[0]
  assert disc[1]['act_disc'].n == 5
  assert cont[1]['act_cont'].shape == (6,)


def walk(env, *moves):
  """Makes moves, such as 'up 3'; returns the last step and all rewards."""
  rewards = []
  for move in moves:
    name, times = move.split()
    action = ['stay', 'down', 'up', 'right', 'left'].index(name)
    for _ in range(int(times)):
      last = env.step({'action': np.array([action], np.int32)})
      rewards.append(last['reward'][0])
  return last, rewards


def test_pinpad_rewards_the_right_order():
  env = dreamer_tpu.envs.make_vector('pinpad_three', 1, 0, config())
  env.reset()
  to_first = 'up 14', 'left 16'
  _, rewards = walk(env, *to_first, 'right 15', 'down 9', 'left 5', 'stay 1')
  assert not any(rewards)  # The order is 1, 3, 2.
  obs, rewards = walk(env, *to_first, 'down 8', 'right 10', 'up 5')
  assert rewards == [0] * 52 + [10]
  cell = lambda row, column: obs['image'][0, 4 * row + 1, 4 * column + 2]
  np.testing.assert_array_equal(cell(4, 11), [0, 0, 0])  # The player.
  np.testing.assert_array_equal(cell(3, 11), [0, 0, 255])  # The bright pad.
  np.testing.assert_array_equal(cell(1, 1), [255, 229, 229])
  np.testing.assert_array_equal(cell(6, 1), [223, 255, 223])
  visited = [cell(14, column).tolist() for column in (1, 3, 5)]
  np.testing.assert_array_equal(visited, np.eye(3) * 255)
  obs, rewards = walk(env, 'stay 9')
  np.testing.assert_array_equal(cell(6, 1), [223, 255, 223])
  obs, more = walk(env, 'up 14')
  np.testing.assert_array_equal(cell(6, 1), [255, 255, 255])
  assert not any(rewards + more)
  env.close()


@pytest.mark.parametrize(
  ('pads', 'name'),
  list(enumerate(['three', 'four', 'five', 'six', 'seven', 'eight'], 3)),
)
def test_pinpad_shows_all_pads(pads, name):
  ours, _ = rollout(f'pinpad_{name}', 0, 4)
  for image in ours['image'][0]:
    colors = np.unique(image.reshape(-1, 3), axis=0)
    assert len(colors) == pads + 3  # Floor, walls and the player.


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


def test_gym_spaces():
  lake, _ = dreamer_tpu.envs.spaces('gym_FrozenLake-v1', config())
  assert lake['vector'].n == 16
  blackjack, _ = dreamer_tpu.envs.spaces('gym_Blackjack-v1', config())
  assert {k: v.n for k, v in blackjack.items()} == {'0': 32, '1': 11, '2': 2}


def test_gym_arguments():
  easy = dreamer_tpu.envs.spaces(
    'gym_FrozenLake-v1', config(gym__kwargs='{"map_name": "8x8"}')
  )
  assert easy[0]['vector'].n == 64
  task = 'gym_FrozenLake-v1'
  with pytest.raises(UserError, match="unexpected keyword argument 'nothing'"):
    dreamer_tpu.envs.spaces(task, config(gym__kwargs='{"nothing": 1}'))


def test_gym_render_modes(caplog):
  shown, env = screenshots('gym_InvertedPendulum-v5')
  env.close()
  assert shown[0].shape == (128, 128, 3)
  assert shown[0].std() > 0
  shown, env = screenshots('gym_tests.helpers.toys:ThreeMoves-v0')
  env.close()
  assert shown == {}
  assert 'render() returns NoneType' in caplog.text


class Numbers(gymnasium.Env):
  observation_space = action_space = gymnasium.spaces.Discrete(9)

  def __init__(self, index, role='train', **options):
    self._index = index
    assert (role, options) == ('train', {'port': 1})

  def reset(self, **kwargs):
    return self._index, {}


def test_gym_number_and_role():
  gymnasium.register('Numbers-v0', Numbers, kwargs={'port': 1})
  env_config = config(gym__kwargs='{"role": "train"}')
  env_config.stepping = 'serial'
  env = dreamer_tpu.envs.make_vector(
    'gym_Numbers-v0', 2, 0, env_config, role='eval', first=3
  )
  np.testing.assert_array_equal(env.reset()['vector'], [3, 4])
  env.close()


MINE = """
import gymnasium
class Mine(gymnasium.Env):
  observation_space = action_space = gymnasium.spaces.Discrete(3)
  def reset(self, **kwargs):
    return 1, {}
  def step(self, action):
    return 2, 1.0, False, False, {}
gymnasium.register('Mine-v0', Mine)
"""


def test_a_module_in_the_current_folder(tmp_path, monkeypatch):
  (tmp_path / 'beside_the_script.py').write_text(MINE)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  env_config = config()
  env_config.stepping = 'workers'
  env = dreamer_tpu.envs.make_vector(
    'gym_beside_the_script:Mine-v0', 1, 0, env_config
  )
  assert env.reset()['vector'] == [1]
  env.close()


def test_gym_module():
  task = 'gym_ale_py:ALE/Pong-v5'
  env_config = config(gym__repeat=1)
  obs_space, act_space = dreamer_tpu.envs.spaces(task, env_config)
  assert obs_space['image'].shape == (64, 64, 3)
  assert act_space['action'].n == 6
  obs_space, _ = dreamer_tpu.envs.spaces(task, config(gym__size=(0, 0)))
  assert obs_space['image'].shape == (210, 160, 3)


def test_gymnasium_checks_an_environment():
  """The checker warns and complains; the instance is closed."""
  closed = []

  class Unseeded(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
      return np.zeros(2, np.float32), {}

    def close(self):
      closed.append(self)

  dreamer_tpu.envs.register('unseeded', lambda name, config: Unseeded())
  env_config = config()
  env_config.stepping = 'serial'
  lines = dreamer_tpu.envs.check('unseeded_x', env_config)
  assert len(closed) == 1
  with (
    warnings.catch_warnings(record=True) as caught,
    pytest.raises(AssertionError) as info,
  ):
    check_env(Unseeded(), skip_render_check=True)
  assert len(lines) == len(caught) + 1
  for line, warning in zip(lines, caught, strict=False):
    assert line in str(warning.message)
  assert lines[-1] == str(info.value)
  (line,) = dreamer_tpu.envs.check('atari_pong', env_config)
  assert 'cannot be checked' in line


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


def test_a_missing_package_is_named_with_its_command(monkeypatch):
  monkeypatch.setitem(sys.modules, 'ale_py', None)
  command = r"'ale_py' is missing: pip install -r requirements\.txt$"
  with pytest.raises(UserError, match=command):
    dreamer_tpu.envs.make_vector('atari_pong', 1, 0, config())


def test_suites_that_need_an_older_python(monkeypatch):
  suite = dreamer_tpu.envs.registry.suite_of('dmc')
  monkeypatch.setattr(sys, 'version_info', (3, 12))
  assert suite.install == 'pip install -r requirements.txt'
  monkeypatch.setattr(sys, 'version_info', (3, 13))
  assert 'use Python 3.11 or 3.12' in suite.install


def test_registered_suites():
  with pytest.raises(UserError, match='underscores'):
    dreamer_tpu.envs.register('my_suite', lambda name, config: None)
  dreamer_tpu.envs.register('nothing', lambda name, config: None)
  with pytest.raises(UserError, match=r'not a gymnasium\.Env'):
    dreamer_tpu.envs.spaces('nothing_x', config())
