"""Atari games, stepped by the threads of ALE's vector environment.

An episode spans all lives. Game over is terminal; the limit of `length` frames
is not (108,000 frames are half an hour of play). No-ops at the start do not
count towards the limit.
"""

from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Dict

from dreamer_tpu.envs import registry
from dreamer_tpu.envs.conversion import discrete_space, image_space


def make_vector(name: str, num_envs: int, config: Any) -> 'AtariObservation':
  """Makes N games as one vector environment.

  Args:
    name: ROM of ale_py, such as 'ms_pacman'.
    num_envs: Number N of games.
    config: size (height, width), repeat, sticky (probability that a frame
      repeats the previous action), gray, actions ('all' 18 or the game's
      'minimal' set), noops (maximum at the start), pool (maximum over the last
      1 or 2 frames), length (in frames, 0 for no limit).
  """
  from ale_py.vector_env import AtariVectorEnv

  env = AtariVectorEnv(
    name,
    num_envs,
    max_num_frames_per_episode=config.length or np.iinfo(np.int32).max,
    repeat_action_probability=config.sticky,
    full_action_space=config.actions == 'all',
    img_height=config.size[0],
    img_width=config.size[1],
    grayscale=config.gray,
    stack_num=1,
    frameskip=config.repeat,
    maxpool=config.pool == 2,
    noop_max=config.noops,
    reward_clipping=False,
    use_fire_reset=False,
  )
  return AtariObservation(env)


class AtariObservation(gymnasium.vector.VectorWrapper):
  """Converts stacked frames to Dict observations with images [H, W, C]."""

  def __init__(self, env: Any):
    super().__init__(env)
    stack = env.single_observation_space.shape
    shape = (*stack[1:3], stack[3] if len(stack) == 4 else 1)
    actions = discrete_space(env.single_action_space.n)
    self.single_observation_space = Dict(image=image_space(shape))
    self.single_action_space = Dict(action=actions)
    self._shape = (env.num_envs, *shape)

  def reset(self, *, seed=None, options=None):
    """Resets all games; `seed` is a list of seeds."""
    if seed is not None:
      seed = np.asarray(seed, np.int32)
    obs, _ = self.env.reset(seed=seed, options=options)
    return {'image': obs.reshape(self._shape)}, {}

  def step(self, actions):
    """Steps all games."""
    obs, reward, terminated, truncated, _ = self.env.step(actions['action'])
    obs = {'image': obs.reshape(self._shape)}
    return obs, reward, terminated, truncated, {}


def names(name: str, config: Any) -> Iterable[str]:
  """Returns the ROMs of ale_py."""
  del name, config
  from ale_py import roms

  return roms.get_all_rom_ids()


SUITE = registry.Suite(make_vector=make_vector, names=names)
