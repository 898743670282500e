"""Registry of suites: finds a task's environment and makes N of it.

A task is named SUITE_NAME. A suite is a module of the folder `suites`,
imported on demand, or a function added with `register`:

  import dreamer_tpu.envs

  def make(name, config):  # For task 'mine_NAME'; config is config.env.mine.
    return MyGymnasiumEnv(level=name)

  dreamer_tpu.envs.register('mine', make)

Every environment finds its number, which no other of the run has, and its role,
'train' or 'eval': as the keywords `index` and `role` where its maker accepts
them, and as DREAMER_ENV_INDEX and DREAMER_ENV_ROLE while it is made.
"""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium

from dreamer_tpu import image_size
from dreamer_tpu.envs import rendering, vector, wrappers
from dreamer_tpu.envs.conversion import Rules
from dreamer_tpu.envs.restarting import Failure
from dreamer_tpu.envs.serial import Serial
from dreamer_tpu.envs.together import Together
from dreamer_tpu.envs.waiting import Patience
from dreamer_tpu.envs.workers import Workers
from dreamer_tpu.errors import UserError, nearest, prefixed

INDEX, ROLE = 'DREAMER_ENV_INDEX', 'DREAMER_ENV_ROLE'

BUILTIN = (
  'atari',
  'brax',
  'bsuite',
  'craftax',
  'crafter',
  'data',
  'dm',
  'dmc',
  'dmlab',
  'dummy',
  'gym',
  'gymnax',
  'loconav',
  'memmaze',
  'metaworld',
  'minecraft',
  'myosuite',
  'pinpad',
  'playground',
  'procgen',
)
# Suites whose images the conversion resizes to their option `size`.
RESIZED = ('gym', 'procgen')
# They require labmaze, which has no wheel for Python 3.13.
_OLDER_PYTHON = ('dm_control', 'memory-maze')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
  """Functions that make the environments of a suite.

  Attributes:
    make: Makes one environment from NAME and the suite's config, and from those
      of the keywords `index`, `role` and `render_mode` that it accepts.
    make_vector: Makes N environments as one Gymnasium vector environment, from
      NAME, N and the suite's config.
    make_functional: Makes one `functional.FunctionalEnv`, which stands for N,
      from NAME and the suite's config, and from `index` (that of the first) and
      `role` if it accepts them; such a suite has no other makers.
    together: Returns for the suite's config whether `make_vector` is used.
    names: Returns the valid names; None accepts any.
    cheap: Returns whether a step takes less time than handing it to a process.
    package: Distribution that the suite needs, such as 'ale-py'; '' if it needs
      none but what the user names.
    extra: Extra of this project that installs it; '' if requirements.txt does.
    by_hand: Way to install it where no command does.
    benchmarks: Names of tasks by the name of a list of them, for sweeps.
  """

  make: Any = None  # Callable[..., Env], or None if all always step together.
  make_vector: Any = None  # Callable[[str, int, Any], Any], or None.
  make_functional: Any = None  # Callable[..., FunctionalEnv], or None.
  together: Callable[[Any], bool] = lambda config: True
  names: Callable[[str, Any], Iterable[str]] | None = None
  cheap: Callable[[str, Any], bool] = lambda name, config: False
  package: str = ''
  extra: str = ''
  by_hand: str = ''
  benchmarks: Mapping[str, Sequence[str]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def install(self) -> str:
    """Command that installs the suite's package; '' without a package."""
    if self.by_hand:
      return self.by_hand
    if self.package in _OLDER_PYTHON and sys.version_info >= (3, 13):
      return 'use Python 3.11 or 3.12, as labmaze has no wheel for newer ones'
    if self.extra:
      return f'pip install .[{self.extra}]'
    return 'pip install -r requirements.txt' if self.package else ''


_registered: dict[str, Suite] = {}


def register(
  suite: str,
  make: Callable[..., Any],
  *,
  cheap: bool = False,
  vector: bool = False,
  functional: bool = False,
) -> None:
  """Adds a suite; its tasks are named SUITE_NAME.

  Args:
    suite: Part of the task before the first underscore.
    make: Function of NAME and config.env.SUITE (None if missing) that returns
      a `gymnasium.Env`. cloudpickle sends it to worker processes. It may accept
      the keywords `index` (a number for ports and files), `role` ('train' or
      'eval') and `render_mode` ('rgb_array' for videos).
    cheap: Steps all environments in this process. Faster than worker processes
      if a step takes less than about 0.1 ms.
    vector: Calls `make` with NAME, the number of environments and the config;
      it returns a `gymnasium.vector.VectorEnv` with NEXT_STEP autoreset.
    functional: Calls `make` once for all environments; it returns a
      `dreamer_tpu.envs.functional.FunctionalEnv`, which steps inside the
      program that acts. `index` is that of the first of them.

  Raises:
    UserError: The name is empty or contains an underscore.
  """
  if not suite or '_' in suite:
    raise UserError(f'suite {suite!r}: use a name without underscores')
  if functional:
    _registered[suite] = Suite(make_functional=make)
  elif vector:
    make_one_seed = lambda *args: wrappers.FirstSeed(make(*args))
    _registered[suite] = Suite(make_vector=make_one_seed)
  else:
    _registered[suite] = Suite(make=make, cheap=lambda name, config: cheap)


def make_vector(
  task: str,
  num_envs: int,
  seed: int,
  env_config: Any,
  stop: Callable[[], bool] = lambda: False,
  *,
  rules: Rules | None = None,
  role: str = 'train',
  first: int = 0,
  render: bool = False,
) -> vector.VectorEnv:
  """Makes the environments of a task.

  Args:
    task: SUITE_NAME, such as 'atari_pong' or 'gym_CartPole-v1'.
    num_envs: Number of environments.
    seed: Seed of all their randomness; see `vector.seeds`.
    env_config: Group `env` of the configuration.
    stop: Returns whether the run was asked to stop; see `waiting.Patience`.
    rules: Options of the conversion of spaces, by default those of
      `env_config`.
    role: Purpose of the environments, 'train' or 'eval'.
    first: Number of the first one, `index`; the others follow.
    render: Whether to make them for rendering, where they can be rendered.

  Raises:
    UserError: The task is unknown, a package is missing, an environment cannot
      be made, or the agent cannot take a space.
  """
  if num_envs < 1:
    raise UserError(f'{num_envs} environments: at least one is needed')
  with _naming(task):
    found = _find(task, env_config)
    patience = Patience(env_config.timeout, stop)
    keywords: list[dict[str, Any]] = [
      {'index': first + i, 'role': role} for i in range(num_envs)
    ]
    if render:
      for each in keywords:
        each['render_mode'] = rendering.MODE
    rules = rules or make_rules(task, env_config)
    env = _start(found, keywords, env_config, patience, rules)
  return vector.GymVector(env, task, seed, found.repeat, renders=render)


def is_functional(task: str) -> bool:
  """Returns whether environments of a task are functions, see `functional`.

  Args:
    task: SUITE_NAME; an unknown one is not.
  """
  prefix = task.split('_')[0]
  known = prefix in (*_registered, *BUILTIN)
  return known and suite_of(prefix).make_functional is not None


def make_functional(
  task: str,
  num_envs: int,
  env_config: Any,
  *,
  rules: Rules | None = None,
  role: str = 'train',
  first: int = 0,
) -> Any:
  """Makes the environments of a task as functions of their state.

  Args:
    task: SUITE_NAME, for which `is_functional`.
    num_envs: Number of environments.
    env_config: Group `env` of the configuration.
    rules: Options of the conversion, as in `make_vector`.
    role: Purpose of the environments, 'train' or 'eval'.
    first: Number of the first one, `index`.

  Returns:
    A `functional.Vector`.

  Raises:
    UserError: The task is unknown, a package is missing, an environment cannot
      be made, or the agent cannot take a space.
  """
  from dreamer_tpu.envs import functional

  if num_envs < 1:
    raise UserError(f'{num_envs} environments: at least one is needed')
  with _naming(task), _failing():
    found = _find(task, env_config)
    env = _make_functional(found, {'index': first, 'role': role})
    rules = rules or make_rules(task, env_config)
    return functional.Vector(env, num_envs, rules, found.repeat)


def make_rules(task: str, env_config: Any, stages: int = Rules.stages) -> Rules:
  """Returns the options of the conversion of a task's spaces.

  Args:
    task: SUITE_NAME.
    env_config: Group `env` of the configuration.
    stages: Number of times that the encoder halves images.
  """
  suite = task.split('_')[0]
  size = env_config[suite].size if suite in RESIZED else ('auto',)
  return Rules(
    keys=env_config['keys'],  # A ConfigDict has a method of that name.
    size=image_size.parse(size),
    action_scale=env_config.action_scale,
    stages=stages,
  )


def spaces(
  task: str, env_config: Any, rules: Rules | None = None
) -> tuple[dict[str, gymnasium.Space], dict[str, gymnasium.Space]]:
  """Returns observation and action spaces of a task, as the agent sees them.

  Makes one environment and closes it.

  Args:
    task: SUITE_NAME.
    env_config: Group `env` of the configuration.
    rules: Options of the conversion, as in `make_vector`.

  Raises:
    UserError: As `make_vector`.
  """
  if is_functional(task):  # Compiles nothing.
    env = make_functional(task, 1, env_config, rules=rules)
  else:
    env = make_vector(task, 1, 0, env_config, rules=rules)
    env.close()
  return env.obs_space, env.act_space


def check(
  task: str, env_config: Any, stop: Callable[[], bool] = lambda: False
) -> list[str]:
  """Returns the complaints of Gymnasium's checker about a task.

  Makes one environment and closes it.

  Args:
    task: SUITE_NAME.
    env_config: Group `env` of the configuration.
    stop: Returns whether the run was asked to stop; see `waiting.Patience`.

  Raises:
    UserError: As `make_vector`.
  """
  with _naming(task):
    found = _find(task, env_config)
    if found.together:
      return ['environments that step as one vector cannot be checked']
    patience = Patience(env_config.timeout, stop)
    keywords = [{'index': 0, 'role': 'train'}]
    rules = make_rules(task, env_config)
    env = _start(found, keywords, env_config, patience, rules)
  with contextlib.closing(env):
    return env.check()


def suite_of(prefix: str) -> Suite:
  """Returns a suite, without importing its package.

  Args:
    prefix: Part of its tasks before the first underscore; a name in `BUILTIN`
      or a registered one.
  """
  if prefix in _registered:
    return _registered[prefix]
  return importlib.import_module(f'dreamer_tpu.envs.suites.{prefix}').SUITE


def tasks(prefix: str, env_config: Any) -> list[str]:
  """Returns the sorted tasks of a suite; makes no environment.

  Args:
    prefix: As in `suite_of`.
    env_config: Group `env` of the configuration.

  Raises:
    UserError: A package is missing, or any name is a task.
  """
  suite = suite_of(prefix)
  if suite.names is None:
    raise UserError('any name is a task')
  with _explaining(suite):
    names = suite.names('', getattr(env_config, prefix, None))
  return sorted(f'{prefix}_{name}' for name in names)


class _Task(NamedTuple):
  """A task, its suite, its name in the suite, and the suite's config."""

  task: str
  suite: Suite
  name: str
  config: Any

  @property
  def together(self) -> bool:
    """True if its environments step as one vector environment."""
    if self.suite.make_functional:
      return True
    return bool(self.suite.make_vector) and self.suite.together(self.config)

  @property
  def repeat(self) -> int:
    """Environment frames per step."""
    return getattr(self.config, 'repeat', 1)


def _find(task: str, env_config: Any) -> _Task:
  prefix, _, name = task.partition('_')
  if prefix in (*_registered, *BUILTIN):
    suite = suite_of(prefix)
  else:
    suites = sorted({*BUILTIN, *_registered})
    near = f'did you mean {nearest(prefix, suites)}_{name or "NAME"}? '
    raise UserError(
      f'unknown suite {prefix!r}, {near}(suites: {", ".join(suites)})'
    )
  if not name:
    raise UserError('write it as SUITE_NAME')
  config = getattr(env_config, prefix, None)
  if suite.names is not None:
    with _explaining(suite):
      names = sorted(suite.names(name, config))
    if name not in names:
      near = nearest(name, names)
      raise UserError(
        f'{prefix} has no {name!r}, did you mean {prefix}_{near}?'
      )
  return _Task(task, suite, name, config)


def _start(
  found: _Task,
  keywords: list[dict[str, Any]],
  env_config: Any,
  patience: Patience,
  rules: Rules,
) -> Any:
  """Makes the Gymnasium vector environment of a task."""
  task, suite, name, config = found
  restarts = env_config.restarts
  if found.together:
    make_all = lambda: wrappers.ConvertedVector(
      _make_together(found, keywords), rules
    )
    with _explaining(suite):
      return Together(make_all, task, restarts, patience)
  stepping = env_config.stepping
  if python := getattr(config, 'python', ''):
    if stepping == 'serial':
      raise UserError(
        f'env.stepping=serial does not go with another Python, {python}; only '
        'workers can end one that hangs'
      )
    stepping = 'workers'
  if stepping == 'auto':
    with _explaining(suite):
      # Rendering is slow, and graphics libraries may crash.
      cheap = 'render_mode' not in keywords[0] and suite.cheap(name, config)
      stepping = 'serial' if cheap else 'workers'
  kind = Serial if stepping == 'serial' else Workers
  make = functools.partial(_make_one, suite, name, config, rules, os.getcwd())
  makers: list[Callable[[], gymnasium.Env]] = [
    functools.partial(make, each) for each in keywords
  ]
  if kind is Serial:
    makers = [functools.partial(_restoring, each) for each in makers]
  return kind(makers, task, restarts, patience)


def _make_together(found: _Task, keywords: list[dict[str, Any]]) -> Any:
  if not found.suite.make_functional:
    return found.suite.make_vector(found.name, len(keywords), found.config)
  from dreamer_tpu.envs import functional

  with _failing():
    env = _make_functional(found, keywords[0])
    return functional.HostVector(env, len(keywords))


def _make_functional(found: _Task, keywords: dict[str, Any]) -> Any:
  """Makes one functional environment, which repeats actions."""
  from dreamer_tpu.envs import functional

  def make() -> Any:
    _announce(keywords)
    given = accepted(found.suite.make_functional, keywords)
    return found.suite.make_functional(found.name, found.config, **given)

  with _explaining(found.suite):
    env = _restoring(make)
  return functional.Repeat(env, found.repeat) if found.repeat > 1 else env


def _make_one(
  suite: Suite,
  name: str,
  config: Any,
  rules: Rules,
  folder: str,
  keywords: dict[str, Any],
) -> gymnasium.Env:
  with contextlib.suppress(OSError):  # The folder may be gone.
    os.chdir(folder)  # An earlier environment may have left it.
  _announce(keywords)
  with _explaining(suite):
    env = suite.make(name, config, **accepted(suite.make, keywords))
  if not isinstance(env, gymnasium.Env):
    raise UserError(
      f'{type(env).__module__}.{type(env).__name__} is not a gymnasium.Env'
    )
  return wrappers.Converted(env, rules)


def _announce(keywords: dict[str, Any]) -> None:
  """Sets the variables that tell an environment its number and role."""
  os.environ[INDEX], os.environ[ROLE] = str(keywords['index']), keywords['role']


def _restoring(make: Callable[[], Any]) -> Any:
  """Makes an environment; restores the variables that `_announce` sets."""
  before = {name: os.environ.pop(name, None) for name in (INDEX, ROLE)}
  try:
    return make()
  finally:
    for name, value in before.items():
      os.environ.pop(name, None)
      if value is not None:
        os.environ[name] = value


def accepted(make: Any, keywords: dict[str, Any]) -> dict[str, Any]:
  """Returns the keywords that a function or class names as its arguments."""
  try:
    named = inspect.signature(make).parameters
  except (TypeError, ValueError):  # Not written in Python.
    return {}
  return {key: value for key, value in keywords.items() if key in named}


@contextlib.contextmanager
def _naming(task: str) -> Iterator[None]:
  """Puts the task before the message of a UserError."""
  try:
    yield
  except UserError as error:
    raise prefixed(f'task {task}: ', error) from error


@contextlib.contextmanager
def _failing() -> Iterator[None]:
  """Turns what the code of an environment raises into a UserError."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    raise Failure.of(error, 'the environment').error() from error


@contextlib.contextmanager
def _explaining(suite: Suite) -> Iterator[None]:
  """Turns missing packages into UserErrors with the way to install them."""
  try:
    yield
  except ModuleNotFoundError as error:
    way = suite.install or 'install it, or start in its folder'
    raise UserError(
      f'the Python module {error.name!r} is missing: {way}'
    ) from error
  except gymnasium.error.DependencyNotInstalled as error:
    raise UserError(' '.join(str(error).split())) from error
