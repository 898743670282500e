"""Finds the environment that a task names, and makes many of it.

A task is SUITE_NAME. A suite is a module of this folder, imported when it is
asked for, or a function added with `register`:

  import dreamer_tpu.envs

  def make(name, config):  # Task 'mine_NAME'; config is config.env.mine.
    return MyGymnasiumEnv(level=name)

  dreamer_tpu.envs.register('mine', make)
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium

from dreamer_tpu.envs import vector, workers, wrappers
from dreamer_tpu.errors import UserError, nearest

BUILTIN = ('atari', 'crafter', 'dmc', 'gym')

MakeEnv = Callable[[str, Any], gymnasium.Env]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
  """How to make the environments of a suite.

  Attributes:
    make: makes one environment from the task's name and the suite's config.
    make_vector: makes N of them as one Gymnasium vector environment with
      normalised spaces, in place of `make`.
    names: the valid names, to check the task's name by; None accepts all.
    cheap: whether a step takes less time than handing it to a process.
  """

  make: Any = None  # MakeEnv, or None with make_vector.
  make_vector: Callable[[str, int, Any], Any] | None = None
  names: Callable[[str, Any], Iterable[str]] | None = None
  cheap: Callable[[str, Any], bool] = lambda name, config: False


_registered: dict[str, Suite] = {}


def register(suite: str, make: MakeEnv, *, cheap: bool = False) -> None:
  """Adds a suite of one's own; its tasks are named SUITE_NAME.

  Args:
    suite: the part of the task before the first underscore.
    make: called with NAME and config.env.SUITE (None if there is none),
      returns a `gymnasium.Env`. It is sent to worker processes by cloudpickle.
    cheap: steps all environments in this process, which is faster than worker
      processes if a step takes less than about 0.1 ms.

  Raises:
    UserError: the name holds an underscore.
  """
  if not suite or '_' in suite:
    raise UserError(f'suite {suite!r}: a name without underscores is needed')
  _registered[suite] = Suite(make=make, cheap=lambda name, config: cheap)


def make_vector(
  task: str, num_envs: int, seed: int, env_config: Any
) -> vector.VectorEnv:
  """Makes the environments of a task.

  Args:
    task: SUITE_NAME, such as 'atari_pong' or 'gym_CartPole-v1'.
    num_envs: how many.
    seed: of all their randomness; see `vector.seeds`.
    env_config: the group `env` of the configuration.

  Raises:
    UserError: an unknown task, a missing package, an unusable space or option.
  """
  if num_envs < 1:
    raise UserError(f'{num_envs} environments: at least one is needed')
  suite, name, config = _find(task, env_config)
  if suite.make_vector is not None:
    env = _readable(task, suite.make_vector, name, num_envs, config)
  else:
    make = functools.partial(_make_one, suite.make, task, name, config)
    cheap = env_config.stepping == 'serial' or (
      env_config.stepping == 'auto' and suite.cheap(name, config)
    )
    start = vector.serial if cheap else workers.start
    env = _readable(task, start, [make] * num_envs)
  repeat = getattr(config, 'repeat', 1)
  return vector.GymVector(env, task, seed, repeat)


def spaces(
  task: str, env_config: Any
) -> tuple[dict[str, gymnasium.Space], dict[str, gymnasium.Space]]:
  """Observation and action spaces of a task, from an instance closed at once.

  Raises:
    UserError: as `make_vector`.
  """
  suite, name, config = _find(task, env_config)
  if suite.make_vector is not None:
    env = _readable(task, suite.make_vector, name, 1, config)
  else:
    make = functools.partial(_make_one, suite.make, task, name, config)
    env = _readable(task, vector.serial, [make])
  env = vector.GymVector(env, task, seed=0)
  env.close()
  return env.obs_space, env.act_space


def _find(task: str, env_config: Any) -> tuple[Suite, str, Any]:
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
    names = sorted(_readable(task, suite.names, name, config))
    if name not in names:
      near = nearest(name, names)
      raise UserError(
        f'task {task!r}: {prefix} has no {name!r}, did you mean '
        f'{prefix}_{near}?'
      )
  return suite, name, config


def _make_one(make: MakeEnv, task: str, name: str, config: Any):
  env = make(name, config)
  if not isinstance(env, gymnasium.Env):
    raise UserError(
      f'task {task}: {type(env).__module__}.{type(env).__name__} is not a '
      'gymnasium.Env'
    )
  return wrappers.wrap(env, task)


def _readable(task: str, function: Callable, *args: Any) -> Any:
  """Calls a function and turns the usual failures into one line."""
  try:
    return function(*args)
  except ModuleNotFoundError as error:
    raise UserError(
      f'task {task}: the Python module {error.name!r} is missing, install it'
    ) from error
  except gymnasium.error.DependencyNotInstalled as error:
    raise UserError(f'task {task}: {" ".join(str(error).split())}') from error
