"""Any environment of Gymnasium's registry: 'gym_CartPole-v1'.

'gym_MODULE:ENV_ID' imports the module first, which registers the environment.
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
  """Makes one environment.

  Args:
    name: ID in Gymnasium's registry, optionally with MODULE: before it.
    config: size (height, width) of images, (0, 0) for the original; repeat;
      length in frames, 0 for the environment's own limit.
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
  """Returns the registered IDs, after importing the module if given."""
  del config
  _import(name)
  module, colon, _ = name.rpartition(':')
  return [f'{module}{colon}{key}' for key in gymnasium.registry]


def cheap(name: str, config: Any) -> bool:
  """Returns whether it is one of Gymnasium's classic environments."""
  del config
  entry = gymnasium.spec(_import(name)).entry_point
  return isinstance(entry, str) and entry.startswith(CHEAP)


def _import(name: str) -> str:
  """Imports the module of a name, if given, and returns the ID."""
  module, _, name = name.rpartition(':')
  if module:
    importlib.import_module(module)
  return name


SUITE = registry.Suite(make=make, names=names, cheap=cheap)
