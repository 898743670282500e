"""DeepMind Control, with proprioception, pixels or both.

Tasks are named dmc_DOMAIN_TASK. Domains are those of dm_control.suite; manip,
the tasks of dm_control.manipulation, which have the positions of objects where
no image is observed; and rodent and cmu_humanoid, of dm_control.locomotion.

A discount of 0 is terminal, a time limit is not.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dreamer_tpu.envs import dm_control, registry
from dreamer_tpu.envs.dm_control import Control

MANIP = 'manip_'

LOCOMOTION = {
  'rodent_escape_bowl': 'basic_rodent_2020',
  'rodent_run_gaps': 'basic_rodent_2020',
  'rodent_maze_forage': 'basic_rodent_2020',
  'rodent_two_touch': 'basic_rodent_2020',
  'cmu_humanoid_run_walls': 'basic_cmu_2019',
  'cmu_humanoid_run_gaps': 'basic_cmu_2019',
  'cmu_humanoid_go_to_target': 'basic_cmu_2019',
  'cmu_humanoid_maze_forage': 'basic_cmu_2019',
  'cmu_humanoid_heterogeneous_forage': 'basic_cmu_2019',
}

# Domains whose physics takes longer than handing a step to a process.
HEAVY = ('dog', 'humanoid', 'humanoid_CMU', 'quadruped')


def make(name: str, config: Any, *, render_mode: str | None = None) -> Control:
  """Makes one environment.

  Args:
    name: Domain and task, such as 'ball_in_cup_catch'.
    config: As for `Control`. The default camera is 0, for quadruped 2, for the
      rodent 4; manipulation and locomotion observe the task's own.
    render_mode: 'rgb_array' for rendering.
  """
  wanted = render_mode is not None
  reseed = dm_control.reseed
  if name.startswith(MANIP):
    module = dm_control.load(
      'dm_control.manipulation', config.image, wanted=wanted
    )
    kind = 'vision' if config.image else 'features'
    env = module.load(f'{name.removeprefix(MANIP)}_{kind}')
    camera: int | str = 'front_close'
  elif name in LOCOMOTION:
    # The cameras of these tasks render while they are made.
    module = dm_control.load(
      f'dm_control.locomotion.examples.{LOCOMOTION[name]}', True
    )
    function = getattr(module, name)
    env, reseed = function(), functools.partial(_remake, function)
    camera = 4 if name.startswith('rodent_') else 1
  else:
    suite = dm_control.load('dm_control.suite', config.image, wanted=wanted)
    domain, task = split(name)
    # lqr draws its model here: a fixed seed gives all environments one model.
    env = suite.load(domain, task, {'random': 0})
    camera = 2 if domain == 'quadruped' else 0
  return Control(env, config, camera, reseed=reseed, render_mode=render_mode)


def _remake(function: Callable[..., Any], env: Any, seed: int) -> Any:
  """Makes a task of locomotion anew; mazes use NumPy's global generator."""
  env.close()
  np.random.seed(seed)  # noqa: NPY002
  return function(random_state=seed)


def split(name: str) -> tuple[str, str]:
  """Splits a name into domain and task; both may contain underscores."""
  from dm_control import suite

  return next(pair for pair in suite.ALL_TASKS if '_'.join(pair) == name)


def names(name: str, config: Any) -> Iterable[str]:
  """Returns all tasks; of manipulation, only if a name might be one."""
  suite = dm_control.load('dm_control.suite', config.image)
  found = ['_'.join(pair) for pair in suite.ALL_TASKS]
  if not name or name.startswith(MANIP):  # Its import takes long.
    module = dm_control.load('dm_control.manipulation', config.image)
    found += {f'{MANIP}{x.rpartition("_")[0]}' for x in module.ALL}
  return found + list(LOCOMOTION)


def cheap(name: str, config: Any) -> bool:
  """Returns whether physics is fast: about 0.1 ms a step for small bodies."""
  if config.image or name.startswith(MANIP) or name in LOCOMOTION:
    return False
  return split(name)[0] not in HEAVY


SUITE = registry.Suite(
  make=make, names=names, cheap=cheap, package='dm_control'
)
