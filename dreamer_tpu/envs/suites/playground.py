"""MuJoCo Playground: robots in MJX, such as 'playground_CartpoleBalance'.

Ends that a task asks for are terminal, its time limit is not. Locomotion and
manipulation download the models of their robots from GitHub when they are made
for the first time. Some observe `privileged_state`, which no real robot has;
`--env.keys=state` leaves it out.
"""

import json
import subprocess
from collections.abc import Iterable
from typing import Any

from dreamer_tpu.envs import registry
from dreamer_tpu.envs.importing import import_quietly
from dreamer_tpu.errors import UserError


def make(name: str, config: Any) -> Any:
  """Makes one environment.

  Args:
    name: Name in the registry of MuJoCo Playground.
    config: length in frames, 0 for the environment's own limit; kwargs, a JSON
      object of values of the environment's configuration.

  Raises:
    UserError: The configuration has no such value, or the models of its robot
      cannot be downloaded.
  """
  from dreamer_tpu.envs import functional

  playground = _library()
  own = playground.get_default_config(name)
  if 'impl' in own:
    own.impl = 'jax'  # The other one, Warp, needs an NVIDIA GPU.
  try:
    env = playground.load(name, own, json.loads(config.kwargs))
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f'env.playground.kwargs={config.kwargs}: {error}'
    ) from error
  except (subprocess.CalledProcessError, FileNotFoundError) as error:
    raise UserError(
      f'the models of its robot cannot be downloaded from GitHub: {error}'
    ) from error
  screen = functional.Screen(env.mj_model)
  keys = 'qpos', 'qvel', 'mocap_pos', 'mocap_quat'
  render = lambda state: screen({k: getattr(state.data, k) for k in keys})
  length = config.length or own.episode_length
  return functional.TimeLimit(functional.Combined(env, render), length)


def names(name: str, config: Any) -> Iterable[str]:
  """Returns the names of the registry of MuJoCo Playground."""
  del name, config
  return _library().ALL_ENVS


def _library() -> Any:
  # MJX prints that there is no Warp.
  return import_quietly('mujoco_playground').registry


SUITE = registry.Suite(
  make_functional=make, names=names, package='playground', extra='playground'
)
