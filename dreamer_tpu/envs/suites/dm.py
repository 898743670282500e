"""Any environment of dm_env: 'dm_MODULE:FUNCTION'.

The function, or class, returns a `dm_env.Environment`. If it accepts one of the
keywords `seed`, `random_state` and `random`, it is called again for each seed.
"""

import inspect
import json
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium
from gymnasium.wrappers import RepeatAction

from dreamer_tpu.envs import registry
from dreamer_tpu.envs.foreign.client import Made
from dreamer_tpu.envs.from_dm import FromDM
from dreamer_tpu.envs.importing import import_module
from dreamer_tpu.errors import UserError

SEEDS = ('seed', 'random_state', 'random')


def make(
  name: str, config: Any, *, index: int = 0, role: str = 'train'
) -> gymnasium.Env:
  """Makes one environment.

  Args:
    name: MODULE:FUNCTION.
    config: repeat; kwargs, a JSON object of arguments of the function; python
      that runs it, '' for this one.
    index: Number of the environment, for functions that accept it.
    role: Its purpose, 'train' or 'eval', for functions that accept it.

  Raises:
    UserError: The function does not accept the arguments, or returns something
      else.
  """
  if config.python:
    env = Made(
      'dm',
      config.python,
      name=name,
      kwargs=json.loads(config.kwargs),
      keywords={'index': index, 'role': role},
      seeds=SEEDS,
    )
    return RepeatAction(env, config.repeat) if config.repeat > 1 else env
  module, _, attribute = name.partition(':')
  function = getattr(import_module(module), attribute)
  own = registry.accepted(function, {'index': index, 'role': role})
  keywords = own | json.loads(config.kwargs)
  named = registry.accepted(function, dict.fromkeys(SEEDS))
  free = [key for key in named if key not in keywords]

  def reseed(env: Any, seed: int) -> Any:
    env.close()
    return _call(function, keywords | {free[0]: seed})

  env = _call(function, keywords)
  return FromDM(env, config.repeat, reseed if free else None)


def _call(function: Callable[..., Any], keywords: dict[str, Any]) -> Any:
  """Returns the environment that a function makes."""
  try:
    inspect.signature(function).bind(**keywords)
  except TypeError as error:
    raise UserError(f'{error} (see env.dm.kwargs)') from error
  except ValueError:  # Not written in Python.
    pass
  env = function(**keywords)
  if not all(hasattr(env, x) for x in ('observation_spec', 'action_spec')):
    raise UserError(f'it makes {type(env).__name__}, not a dm_env.Environment')
  return env


def names(name: str, config: Any) -> Iterable[str]:
  """Returns what the module of a name has to call."""
  module, _, attribute = name.partition(':')
  if not (module and attribute):
    raise UserError('write it as dm_MODULE:FUNCTION')
  if config.python:
    return [name]  # That Python knows.
  found = vars(import_module(module)).items()
  return [f'{module}:{key}' for key, value in found if callable(value)]


SUITE = registry.Suite(make=make, names=names)
