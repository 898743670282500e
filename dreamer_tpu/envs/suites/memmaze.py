"""Memory Maze: finding colored objects in mazes from images, in a given order.

Tasks are named as in the package's registry, such as memmaze_9x9 or
memmaze_15x15-ExtraObs. The border of the image has the color to look for.
Episodes end by a time limit.
"""

import importlib
import sys
from collections.abc import Iterable
from importlib import util
from types import ModuleType
from typing import Any

import gymnasium

from dreamer_tpu.envs import dm_control, registry
from dreamer_tpu.envs.from_dm import FromDM

SIZES = ('9x9', '11x11', '13x13', '15x15')

VARIANTS = (
  '',
  '-Vis',
  '-HD',
  '-Top',
  '-ExtraObs',
  '-ExtraObs-Vis',
  '-ExtraObs-Top',
  '-Oracle',
  '-Oracle-Top',
  '-Oracle-ExtraObs',
  '-HiFreq',
  '-HiFreq-Vis',
  '-HiFreq-HD',
  '-6CL',
  '-6CL-Top',
  '-6CL-ExtraObs',
)

OPTIONS: dict[str, dict[str, Any]] = {
  'Vis': {'good_visibility': True},
  'HD': {'camera_resolution': 256},
  'Top': {'camera_resolution': 256, 'top_camera': True},
  'ExtraObs': {'global_observables': True, 'image_only_obs': False},
  'Oracle': {'global_observables': True, 'show_path': True},
  'HiFreq': {'control_freq': 40},
  '6CL': {'randomize_colors': True},
}


def make(name: str, config: Any) -> gymnasium.Env:
  """Makes one environment.

  Args:
    name: Size of the maze and variant.
    config: repeat.
  """
  size, *variants = name.split('-')
  function = getattr(load_tasks(), f'memory_maze_{size}')
  options: dict[str, Any] = {'image_only_obs': True}
  for variant in variants:
    options |= OPTIONS[variant]

  def remake(env: Any, seed: int) -> Any:
    env.close()
    return function(seed=seed, **options)

  return FromDM(function(**options), config.repeat, remake)


def load_tasks() -> ModuleType:
  """Imports the tasks alone, as the whole package requires the old gym."""
  dm_control.load('dm_control.composer', True)
  name = 'memory_maze'
  spec = util.find_spec(name)
  if spec is None:
    raise ModuleNotFoundError(f'No module named {name!r}', name=name)
  sys.modules.setdefault(name, util.module_from_spec(spec))
  return importlib.import_module(f'{name}.tasks')


def names(name: str, config: Any) -> Iterable[str]:
  """Returns all sizes with all variants."""
  del name, config
  return [f'{size}{variant}' for size in SIZES for variant in VARIANTS]


SUITE = registry.Suite(
  make=make, names=names, package='memory-maze', extra='memmaze'
)
