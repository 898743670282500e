"""Atari games, stepped by the threads of ALE's vector environment.

An episode spans all lives, unless `lives` says otherwise. Game over is
terminal; the limit of `length` frames is not (108,000 frames are half an hour
of play). No-ops at the start do not count towards the limit.
"""

from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Dict

from dreamer_tpu.envs import pictures, registry, vector
from dreamer_tpu.envs.kinds import discrete_space, image_space

GRAY = np.array([0.299, 0.587, 0.114])  # Weights of the colors.
_ATARI100K = """
  alien amidar assault asterix bank_heist battle_zone boxing breakout
  chopper_command crazy_climber demon_attack freeway frostbite gopher hero
  jamesbond kangaroo krull kung_fu_master ms_pacman pong private_eye qbert
  road_runner seaquest up_n_down
"""
_OTHERS = """
  asteroids atlantis beam_rider berzerk bowling centipede defender double_dunk
  enduro fishing_derby gravitar ice_hockey montezuma_revenge name_this_game
  phoenix pitfall riverraid robotank skiing solaris space_invaders star_gunner
  surround tennis time_pilot tutankham venture video_pinball wizard_of_wor
  yars_revenge zaxxon
"""
BENCHMARKS = {
  'atari100k': _ATARI100K.split(),
  'atari57': sorted((_ATARI100K + _OTHERS).split()),
}


def make_vector(name: str, num_envs: int, config: Any) -> 'AtariObservation':
  """Makes N games as one vector environment.

  Args:
    name: ROM of ale_py, such as 'ms_pacman'.
    num_envs: Number N of games.
    config: size (height, width), repeat, sticky (probability that a frame
      repeats the previous action), gray, actions ('all' 18 or the game's
      'minimal' set), noops (maximum at the start), pool (maximum over the last
      1 or 2 frames), length (in frames, 0 for no limit), lives ('unused',
      'discount' where losing one is terminal but does not end the episode, or
      'reset' where it does), autostart (presses FIRE at the start),
      clip_reward (to its sign), resize ('opencv' averages areas of gray images
      in ALE's threads, 'pillow' does as the public implementation: it
      interpolates in color).
  """
  from ale_py.vector_env import AtariVectorEnv

  opencv = config.resize == 'opencv'
  height, width = config.size if opencv else _screen(name)
  env = AtariVectorEnv(
    name,
    num_envs,
    max_num_frames_per_episode=config.length or np.iinfo(np.int32).max,
    repeat_action_probability=config.sticky,
    full_action_space=config.actions == 'all',
    img_height=height,
    img_width=width,
    grayscale=config.gray and opencv,
    stack_num=1,
    frameskip=config.repeat,
    maxpool=config.pool == 2,
    noop_max=config.noops + 1,  # ALE draws a number below it.
    episodic_life=config.lives == 'reset',
    reward_clipping=config.clip_reward,
    use_fire_reset=config.autostart,
  )
  size, channels = tuple(config.size), 1 if config.gray else 3
  return AtariObservation(env, size, channels, config.lives == 'discount')


class AtariObservation(gymnasium.vector.VectorWrapper):
  """Converts stacked frames to Dict observations with images [H, W, C].

  Args:
    env: ALE's vector environment.
    size: Height and width of the images; others are resized.
    channels: Number of their channels; color is made gray.
    discount: Whether the loss of a life is terminal within an episode.
  """

  def __init__(
    self, env: Any, size: tuple[int, int], channels: int, discount: bool
  ):
    super().__init__(env)
    actions = discrete_space(env.single_action_space.n)
    self.single_observation_space = Dict(image=image_space((*size, channels)))
    self.single_action_space = Dict(action=actions)
    self._size = size
    self._channels = channels
    self._discount = discount
    self._lives = np.zeros(env.num_envs, int)
    self._over = np.zeros(env.num_envs, bool)

  def reset(self, *, seed=None, options=None):
    """Resets all games; `seed` is a list of seeds."""
    if seed is not None:
      seed = np.asarray(seed, np.int32)
    obs, info = self.env.reset(seed=seed, options=options)
    self._lose(info)
    self._over[:] = False
    return self._observation(obs), {}

  def step(self, actions):
    """Steps all games."""
    obs, reward, over, cut, info = self.env.step(actions['action'])
    lost = self._lose(info)
    self._over = over | cut
    infos = {vector.TERMINAL: lost} if self._discount else {}
    return self._observation(obs), reward, over, cut, infos

  def _lose(self, info: dict[str, Any]) -> np.ndarray:
    """Returns the games that go on with fewer lives, bool [N]."""
    before, self._lives = self._lives, np.array(info['lives'])
    return (self._lives > 0) & (self._lives < before) & ~self._over

  def _observation(self, obs: np.ndarray) -> dict[str, np.ndarray]:
    images = obs[:, 0]
    if images.shape[1:3] != self._size:
      images = np.stack([pictures.resize(x, self._size) for x in images])
    if images.ndim == 4 and self._channels == 1:
      images = (images @ GRAY).astype(np.uint8)
    return {'image': images.reshape((-1, *self._size, self._channels))}


def _screen(name: str) -> tuple[int, int]:
  """Returns height and width of a game's screen."""
  import ale_py
  from ale_py import roms

  ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
  ale = ale_py.ALEInterface()
  path: Any = roms.get_rom_path(name)
  ale.loadROM(path)
  return ale.getScreenDims()


def names(name: str, config: Any) -> Iterable[str]:
  """Returns the ROMs of ale_py."""
  del name, config
  from ale_py import roms

  return roms.get_all_rom_ids()


SUITE = registry.Suite(
  make_vector=make_vector,
  names=names,
  package='ale-py',
  benchmarks=BENCHMARKS,
)
