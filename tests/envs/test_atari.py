"""Options of Atari against the ALE, stepped frame by frame."""

import ale_py
import numpy as np
import pytest
from ale_py import roms
from PIL import Image

import dreamer_tpu.envs
from dreamer_tpu.envs import vector
from dreamer_tpu.envs.suites import atari
from dreamer_tpu.tools.plot import published
from tests.helpers import env_checks

FRAMES, REPEAT = 2000, 4


class Frames:
  """One game: ALE's frames, rewards and lives, in the obvious loop."""

  def __init__(self, game, options):
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    self.ale = ale_py.ALEInterface()
    self.ale.setFloat('repeat_action_probability', 0.25)
    self.ale.setInt('random_seed', vector.seeds(3, 1)[0])
    self.ale.loadROM(roms.get_rom_path(game))
    self.options = options
    self.lost = 0

  def reset(self):
    self.ale.reset_game()
    if self.options.get('autostart'):
      self.ale.act(ale_py.Action.FIRE)
    self.lives = self.ale.lives()
    self.screens = [self.ale.getScreenRGB()]

  def step(self, action):
    """Returns reward, whether the episode is over, and whether terminal."""
    lives, reward, self.screens = self.options.get('lives', 'unused'), 0, []
    for _ in range(REPEAT):
      reward += self.ale.act(self.ale.getLegalActionSet()[action])
      self.screens.append(self.ale.getScreenRGB())
      fewer = 0 < self.ale.lives() < self.lives
      over = self.ale.game_over() or (lives == 'reset' and fewer)
      if over:
        break
    self.lives = self.ale.lives()
    self.lost += fewer
    if self.options.get('clip_reward'):
      reward = np.sign(reward)
    return reward, over, over or (lives == 'discount' and fewer)

  def image(self):
    """Returns the maximum of two frames, resized, then gray, 96x96."""
    image = np.maximum.reduce(self.screens[-2:])
    image = Image.fromarray(image)
    resized = np.asarray(image.resize((96, 96), Image.Resampling.BILINEAR))
    gray = self.options.get('gray', True)
    return resized @ [0.299, 0.587, 0.114] if gray else resized


@pytest.mark.parametrize(
  ('game', 'options'),
  [
    ('breakout', {'lives': 'reset', 'autostart': True}),
    ('ms_pacman', {'lives': 'discount', 'resize': 'pillow'}),
    ('seaquest', {'clip_reward': True, 'resize': 'pillow', 'gray': False}),
  ],
)
def test_options_are_those_of_ale(game, options):
  config = env_checks.config_of(f'atari_{game}', {**options, 'noops': 0})
  env = dreamer_tpu.envs.make_vector(f'atari_{game}', 1, 3, config)
  frames, rng, rewards = Frames(game, options), np.random.default_rng(0), set()
  frames.reset()
  ours, over = env.reset(), False
  for _ in range(FRAMES // REPEAT):
    if over:
      frames.reset()
      expected = 0.0, False, False
    action = rng.integers(18)
    ours = env.step({'action': np.array([action], np.int32)})
    if not over:
      expected = frames.step(action)
    over = expected[1]
    flags = ours['reward'], ours['is_last'], ours['is_terminal']
    assert tuple(x.item() for x in flags) == expected
    rewards.add(expected[0])
    if 'resize' in options and not over:
      difference = frames.image() - ours['image'][0].astype(float).squeeze()
      assert np.abs(difference).max() < 1
  env.close()
  assert frames.lost
  assert max(rewards) == 1 or 'clip_reward' not in options


def test_no_ops_at_the_start():
  config = env_checks.config_of('atari_pong', {'noops': 2}).atari
  env = atari.make_vector('pong', 12, config)
  _, info = env.env.reset(seed=np.arange(12))
  env.close()
  assert set(info['episode_frame_number']) == {0, 1, 2}


def test_benchmarks_are_the_published_games():
  curves = published.curves()
  for name, games in atari.BENCHMARKS.items():
    tasks = {task for benchmark, task in curves if benchmark == name}
    assert tasks == {f'atari_{game}' for game in games}
    assert set(games) <= set(atari.names('', None))
