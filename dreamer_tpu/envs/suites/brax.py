"""Brax: robots on accelerators, such as 'brax_ant'.

Falls are terminal where the task says so, the limit of `length` is not.
"""

import json
from collections.abc import Iterable
from typing import Any

from dreamer_tpu.envs import registry
from dreamer_tpu.envs.importing import import_quietly
from dreamer_tpu.errors import UserError


def make(name: str, config: Any) -> Any:
  """Makes one environment.

  Args:
    name: Name in Brax's registry.
    config: length in frames, 0 for no limit; kwargs, a JSON object of arguments
      of the environment.

  Raises:
    UserError: The environment does not accept the arguments.
  """
  from dreamer_tpu.envs import functional

  kwargs = json.loads(config.kwargs)
  try:
    env = _library().get_environment(name, **kwargs)
  except (TypeError, ValueError) as error:
    raise UserError(f'env.brax.kwargs={config.kwargs}: {error}') from error
  screen: Any = None

  def render(state: Any) -> Any:
    nonlocal screen
    screen = screen or functional.Screen(env.sys.mj_model)
    own = state.pipeline_state
    return screen({'qpos': own.q, 'qvel': own.qd})

  limited: Any = functional.Combined(env, render)
  if config.length:
    limited = functional.TimeLimit(limited, config.length)
  return limited


def names(name: str, config: Any) -> Iterable[str]:
  """Returns the names of Brax's registry."""
  del name, config
  return _library()._envs


def _library() -> Any:
  # MJX prints that there is no Warp.
  return import_quietly('brax.envs')


SUITE = registry.Suite(
  make_functional=make, names=names, package='brax', extra='brax'
)
