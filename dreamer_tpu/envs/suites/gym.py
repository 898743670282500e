"""Any environment that Gymnasium can make: 'gym_CartPole-v1'.

Written as 'gym_MODULE:ENV_ID', the module is imported first, to register it.
"""

import importlib
from collections.abc import Iterable
from typing import Any

import gymnasium
from gymnasium import wrappers as gym_wrappers

from dreamer_tpu.envs import registry
from dreamer_tpu.envs.wrappers import ResizeImages
from dreamer_tpu.errors import UserError

CHEAP = ('gymnasium.envs.classic_control', 'gymnasium.envs.toy_text')


def make(name: str, config: Any) -> gymnasium.Env:
  """One environment.

  Args:
    name: an id of Gymnasium's registry, perhaps with a module before it.
    config: size (height, width) of images, (0, 0) as given; repeat; length in
      frames, 0 for the environment's own limit.
  """
  limit = {'max_episode_steps': config.length} if config.length else {}
  try:
    env = gymnasium.make(_import(name), disable_env_checker=True, **limit)
  except gymnasium.error.DependencyNotInstalled:
    raise
  except gymnasium.error.Error as error:
    text = ' '.join(str(error).split())
    raise UserError(f'task gym_{name}: {text}') from error
  if config.repeat > 1:
    env = gym_wrappers.RepeatAction(env, config.repeat)
  return ResizeImages(env, config.size) if any(config.size) else env


def names(name: str, config: Any) -> Iterable[str]:
  """The ids that are registered once the module, if any, is imported."""
  del config
  _import(name)
  module, colon, _ = name.rpartition(':')
  return [f'{module}{colon}{key}' for key in gymnasium.registry]


def cheap(name: str, config: Any) -> bool:
  """Gymnasium's own small environments take microseconds a step."""
  del config
  entry = gymnasium.spec(_import(name)).entry_point
  return isinstance(entry, str) and entry.startswith(CHEAP)


def _import(name: str) -> str:
  """Imports the module of a name and returns the id that is left."""
  module, _, name = name.rpartition(':')
  if module:
    importlib.import_module(module)
  return name


SUITE = registry.Suite(make=make, names=names, cheap=cheap)
