"""Registry of suites: finds a task's environment and makes N of it.

A task is named SUITE_NAME. A suite is a module of the folder `suites`,
imported on demand, or a function added with `register`:

  import dreamer_tpu.envs

  def make(name, config):  # For task 'mine_NAME'; config is config.env.mine.
    return MyGymnasiumEnv(level=name)

  dreamer_tpu.envs.register('mine', make)
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium
from gymnasium.vector import SyncVectorEnv

from dreamer_tpu.envs import vector, workers, wrappers
from dreamer_tpu.errors import UserError, nearest

BUILTIN = ('atari', 'crafter', 'dmc', 'gym')

MakeEnv = Callable[[str, Any], gymnasium.Env]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
  """Functions that make the environments of a suite.

  Attributes:
    make: Makes one environment from NAME and the suite's config.
    make_vector: Replaces `make`: makes N environments as one Gymnasium vector
      environment with the spaces of `conversion.py`.
    names: Returns the valid names; None accepts any.
    cheap: Returns whether a step takes less time than handing it to a process.
  """

  make: Any = None  # MakeEnv, or None with make_vector.
  make_vector: Callable[[str, int, Any], Any] | None = None
  names: Callable[[str, Any], Iterable[str]] | None = None
  cheap: Callable[[str, Any], bool] = lambda name, config: False


_registered: dict[str, Suite] = {}


def register(suite: str, make: MakeEnv, *, cheap: bool = False) -> None:
  """Adds a suite; its tasks are named SUITE_NAME.

  Args:
    suite: Part of the task before the first underscore.
    make: Function of NAME and config.env.SUITE (None if missing) that returns
      a `gymnasium.Env`. cloudpickle sends it to worker processes.
    cheap: Steps all environments in this process. Faster than worker processes
      if a step takes less than about 0.1 ms.

  Raises:
    UserError: The name is empty or contains an underscore.
  """
  if not suite or '_' in suite:
    raise UserError(f'suite {suite!r}: use a name without underscores')
  _registered[suite] = Suite(make=make, cheap=lambda name, config: cheap)


def make_vector(
  task: str, num_envs: int, seed: int, env_config: Any
) -> vector.VectorEnv:
  """Makes the environments of a task.

  Args:
    task: SUITE_NAME, such as 'atari_pong' or 'gym_CartPole-v1'.
    num_envs: Number of environments.
    seed: Seed of all their randomness; see `vector.seeds`.
    env_config: Group `env` of the configuration.

  Raises:
    UserError: The task is unknown, a package is missing, or the agent cannot
      take a space.
  """
  if num_envs < 1:
    raise UserError(f'{num_envs} environments: at least one is needed')
  suite, name, config = _find(task, env_config)
  serial = env_config.stepping == 'serial' or (
    env_config.stepping == 'auto' and suite.cheap(name, config)
  )
  env = _start(suite, task, name, config, num_envs, serial)
  return vector.GymVector(env, task, seed, getattr(config, 'repeat', 1))


def spaces(
  task: str, env_config: Any
) -> tuple[dict[str, gymnasium.Space], dict[str, gymnasium.Space]]:
  """Returns observation and action spaces of a task.

  Makes one environment and closes it.

  Raises:
    UserError: As `make_vector`.
  """
  suite, name, config = _find(task, env_config)
  env = _start(suite, task, name, config, num_envs=1, serial=True)
  result = vector.GymVector(env, task, seed=0)
  result.close()
  return result.obs_space, result.act_space


def _find(task: str, env_config: Any) -> tuple[Suite, str, Any]:
  """Returns the suite of a task, the rest of its name and its config."""
  prefix, _, name = task.partition('_')
  if prefix in _registered:
    suite = _registered[prefix]
  elif prefix in BUILTIN:
    suite = importlib.import_module(f'dreamer_tpu.envs.suites.{prefix}').SUITE
  else:
    suites = sorted({*BUILTIN, *_registered})
    near = f'did you mean {nearest(prefix, suites)}_{name or "NAME"}? '
    raise UserError(
      f'task {task!r}: unknown suite {prefix!r}, {near}'
      f'(suites: {", ".join(suites)})'
    )
  if not name:
    raise UserError(f'task {task!r}: write it as SUITE_NAME')
  config = getattr(env_config, prefix, None)
  if suite.names is not None:
    names = sorted(_as_user_error(task, suite.names, name, config))
    if name not in names:
      near = nearest(name, names)
      raise UserError(
        f'task {task!r}: {prefix} has no {name!r}, did you mean '
        f'{prefix}_{near}?'
      )
  return suite, name, config


def _start(
  suite: Suite, task: str, name: str, config: Any, num_envs: int, serial: bool
) -> Any:
  """Makes the Gymnasium vector environment of a task."""
  if suite.make_vector is not None:
    return _as_user_error(task, suite.make_vector, name, num_envs, config)
  makers = [
    functools.partial(_make_one, suite.make, task, name, config, index)
    for index in range(num_envs)
  ]
  if serial:
    return _as_user_error(task, SyncVectorEnv, makers)
  return _as_user_error(task, workers.start, makers, task)


def _make_one(make: MakeEnv, task: str, name: str, config: Any, index: int):
  env = make(name, config)
  if not isinstance(env, gymnasium.Env):
    raise UserError(
      f'task {task}: {type(env).__module__}.{type(env).__name__} is not a '
      'gymnasium.Env'
    )
  return wrappers.wrap(env, task, index)


def _as_user_error(task: str, function: Callable, *args: Any) -> Any:
  """Calls a function; missing packages become a UserError."""
  try:
    return function(*args)
  except ModuleNotFoundError as error:
    raise UserError(
      f'task {task}: the Python module {error.name!r} is missing, install it'
    ) from error
  except gymnasium.error.DependencyNotInstalled as error:
    raise UserError(f'task {task}: {" ".join(str(error).split())}') from error
