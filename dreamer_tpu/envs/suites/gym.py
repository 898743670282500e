"""Any environment of Gymnasium's registry: 'gym_CartPole-v1'.

'gym_MODULE:ENV_ID' imports the module first, which registers the environment.
"""

import contextlib
import inspect
import json
from collections.abc import Iterable, Iterator
from typing import Any

import gymnasium
from gymnasium import wrappers as gym_wrappers
from gymnasium.envs.registration import load_env_creator

from dreamer_tpu.envs import registry, rendering
from dreamer_tpu.envs.foreign.client import Made
from dreamer_tpu.envs.importing import import_module
from dreamer_tpu.envs.wrappers import FirstSeed
from dreamer_tpu.errors import UserError

CHEAP = ('gymnasium.envs.classic_control', 'gymnasium.envs.toy_text')


def make(
  name: str,
  config: Any,
  *,
  index: int = 0,
  role: str = 'train',
  render_mode: str | None = None,
) -> gymnasium.Env:
  """Makes one environment.

  Args:
    name: ID in Gymnasium's registry, optionally with MODULE: before it.
    config: repeat; length in frames, 0 for the environment's own limit; kwargs,
      a JSON object of arguments of the environment; python that runs it, '' for
      this one.
    index: Number of the environment, for entry points that accept it.
    role: Its purpose, 'train' or 'eval', for entry points that accept it.
    render_mode: Mode of `render`, for environments that have it.
  """
  kwargs = json.loads(config.kwargs)
  if config.python:
    if render_mode:
      rendering.choose_libraries()
    env: gymnasium.Env = Made(
      'gym',
      config.python,
      name=name,
      kwargs=kwargs,
      length=config.length,
      keywords={'index': index, 'role': role},
      render_mode=render_mode,
    )
  else:
    if config.length:
      kwargs['max_episode_steps'] = config.length
    env_id = _import(name)
    with _readable():
      own = _keywords(env_id, index, role, render_mode)
      env = gymnasium.make(env_id, disable_env_checker=True, **(own | kwargs))
  if config.repeat > 1:
    env = gym_wrappers.RepeatAction(env, config.repeat)
  return env


def make_vector(name: str, num_envs: int, config: Any) -> Any:
  """Makes N environments by the vector entry point of an ID.

  Args:
    name: ID, as in `make`.
    num_envs: Number N of environments.
    config: kwargs, as in `make`.

  Raises:
    UserError: The ID has none, or an option of single environments is set.
  """
  if config.repeat > 1 or config.length or config.python:
    raise UserError(
      'env.gym.repeat, length and python do not go with env.gym.vector; use '
      'arguments of the environment in env.gym.kwargs'
    )
  with _readable():
    env = gymnasium.make_vec(
      _import(name),
      num_envs,
      gymnasium.VectorizeMode.VECTOR_ENTRY_POINT,
      **json.loads(config.kwargs),
    )
  return FirstSeed(env)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
  """Turns errors of Gymnasium into UserErrors of one line."""
  try:
    yield
  except gymnasium.error.DependencyNotInstalled:
    raise
  except gymnasium.error.Error as error:
    raise UserError(' '.join(str(error).split())) from error


def _keywords(
  env_id: str, index: int, role: str, render_mode: str | None
) -> dict[str, Any]:
  """Returns the keywords that the entry point of an environment accepts."""
  spec = gymnasium.spec(env_id)
  entry = spec.entry_point
  creator = load_env_creator(entry) if isinstance(entry, str) else entry
  keywords = registry.accepted(creator, {'index': index, 'role': role})
  if render_mode and creator and _has_mode(creator, render_mode):
    keywords['render_mode'] = render_mode
  return {k: v for k, v in keywords.items() if k not in spec.kwargs}


def _has_mode(creator: Any, render_mode: str) -> bool:
  """Returns whether an entry point accepts a render mode."""
  parameters = inspect.signature(creator).parameters
  metadata = getattr(creator, 'metadata', None)
  if not isinstance(metadata, dict):  # A function, or a wrapper.
    return 'render_mode' in parameters
  rest = any(x.kind is x.VAR_KEYWORD for x in parameters.values())
  listed = render_mode in metadata.get('render_modes', ())
  return listed and (rest or 'render_mode' in parameters)


def names(name: str, config: Any) -> Iterable[str]:
  """Returns the registered IDs, after importing the module if given."""
  if config.python:
    return [name]  # That Python knows.
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
    import_module(module)
  return name


SUITE = registry.Suite(
  make=make,
  make_vector=make_vector,
  together=lambda config: config.vector,
  names=names,
  cheap=cheap,
)
