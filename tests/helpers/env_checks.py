"""Checks that the environments of every suite pass, as the agent sees them.

Each raises an AssertionError. `roll` checks flags and spaces of all steps.
"""

import copy
import dataclasses
import importlib.util
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

import dreamer_tpu.envs
from configs.base import base
from dreamer_tpu.envs import registry

FLAGS = 'is_first', 'is_last', 'is_terminal'
IMAGE_RANK = 3

Options = dict[str, Any]
Steps = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """A short task of a suite.

  Attributes:
    task: Its name.
    needs: Module without which it is skipped.
    slow: Whether its checks run with the slow tests.
    options: Options of the suite.
    steps: Steps of the episodes that are compared between seeds.
    varies: Whether seeds make a difference.
    rounding: Difference in values between programs that are compiled for other
      numbers of environments or frames.
    limit: Agent steps of an episode that a time limit ends, with the options
      `short`; 0 for a suite without limits.
    short: Options.
    longer: The same with a later limit; empty if it cannot be changed.
    amid: The same with a limit amid the frames of its last step.
    terminal: Steps in which a random policy meets a termination, and no limit,
      with the options `ending`; 0 for a suite without terminations.
    ending: Options, in which `task` may be another one.
    repeat: Action repeat to compare with single steps; 0 for a suite without.
    repeating: Options without randomness after a reset.
  """

  task: str
  needs: str = ''
  slow: bool = False
  options: Options = dataclasses.field(default_factory=dict)
  steps: int = 30
  varies: bool = True
  rounding: float = 0.0
  limit: int = 0
  short: Options = dataclasses.field(default_factory=dict)
  longer: Options = dataclasses.field(default_factory=dict)
  amid: Options = dataclasses.field(default_factory=dict)
  terminal: int = 0
  ending: Options = dataclasses.field(default_factory=dict)
  repeat: int = 0
  repeating: Options = dataclasses.field(default_factory=dict)

  def skip(self) -> None:
    """Skips the test if a package is missing."""
    if self.needs and not importlib.util.find_spec(self.needs):
      pytest.skip(f'{self.needs} is not installed')


def config_of(task: str, options: Options) -> Any:
  """Returns the group `env` of the configuration with options of a suite."""
  env, suite = base().env, task.split('_')[0]
  env[suite] = {**env.get(suite, {}), **options}
  return env


def roll(
  task: str,
  options: Options,
  steps: int,
  *,
  num_envs: int = 2,
  seed: int = 0,
  stepping: str = 'serial',
  hold: int = 1,
) -> Steps:
  """Takes the same random actions in N environments.

  Args:
    task: Name of the task.
    options: Options of its suite.
    steps: Number T of steps.
    num_envs: Number N of environments.
    seed: Their seed.
    stepping: As `env.stepping`.
    hold: Number of steps with the same action.

  Returns:
    Array [T + 1, N, ...] by key.
  """
  config = config_of(task, options)
  config.stepping = stepping
  env = dreamer_tpu.envs.make_vector(task, num_envs, seed, config)
  actions = Dict(copy.deepcopy(env.act_space))
  actions.seed(0)
  rows = [env.reset()]
  for t in range(steps):
    if t % hold == 0:
      action = {
        k: np.stack([v] * num_envs) for k, v in actions.sample().items()
      }
    rows.append(env.step(action))
  env.close()
  assert env.repeat == config[task.split('_')[0]].get('repeat', 1)
  result = {key: np.stack([row[key] for row in rows]) for key in rows[-1]}
  check_steps(result, env.obs_space)
  return result


def check_steps(steps: Steps, spaces: dict[str, Any]) -> None:
  """Flags fit each other; values have the types and bounds of their spaces."""
  _check_flags(steps)
  _check_values(steps, spaces)


def _check_flags(steps: Steps) -> None:
  first, last, terminal = (steps[key] for key in FLAGS)
  assert {steps[key].dtype for key in FLAGS} == {np.dtype(bool)}
  assert first[0].all()
  np.testing.assert_array_equal(first[1:], last[:-1])
  assert not (first & last).any()
  assert not (terminal & ~last).any()
  assert not steps['reward'][first].any()


def _check_values(steps: Steps, spaces: dict[str, Any]) -> None:
  logs = {key for key in steps if key.startswith('log/')}
  assert set(steps) - logs == {'reward', *FLAGS, *spaces}
  assert steps['reward'].dtype == np.float32
  assert np.isfinite(steps['reward']).all()
  for key, space in spaces.items():
    values = steps[key]
    assert values.dtype == space.dtype, key
    for value in values.reshape((-1, *values.shape[2:])):
      assert space.contains(np.asarray(value)), (key, value)
      assert np.isfinite(value).all(), (key, value)


def check_spaces(case: Case) -> None:
  """The suite's own observations lie within its own spaces."""
  prefix, _, name = case.task.partition('_')
  suite = registry.suite_of(prefix)
  env = suite.make(name, config_of(case.task, case.options)[prefix])
  env.action_space.seed(0)
  values = [env.reset(seed=0)[0]]
  for _ in range(3):
    values.append(env.step(env.action_space.sample())[0])
  env.close()
  for value in values:
    for key, space, part in _leaves(env.observation_space, value):
      # Of numbers, a Box compares the bounds but not the type.
      part = np.asarray(part) if isinstance(space, Box) else part
      assert space.contains(part), (key, space, part)


def _leaves(space: Any, value: Any, key: str = '') -> Iterator[Any]:
  """Yields name, space and value of every entry of a nested Dict."""
  if not isinstance(space, Dict):
    yield key, space, value
    return
  assert set(space.spaces) == set(value)
  for name, part in space.spaces.items():
    yield from _leaves(part, value[name], f'{key}/{name}')


def check_seeds(case: Case) -> None:
  """The same seed gives the same episodes, in whatever process; others not."""
  two = roll(case.task, case.options, case.steps)
  one = roll(
    case.task, case.options, case.steps, num_envs=1, stepping='workers'
  )
  expected = {key: value[:, :1] for key, value in two.items()}
  assert_same(one, expected, case.rounding)
  if case.varies:
    few = min(case.steps, 30)
    other = roll(case.task, case.options, few, num_envs=1, seed=1)
    assert _differ(other, {key: one[key][: few + 1] for key in other})
    assert _differ(one, {key: value[:, 1:] for key, value in two.items()})


def check_limit(case: Case) -> None:
  """A limit ends all episodes in the same step, and changes nothing else."""
  length = case.limit
  ends = [length, 2 * length + 1]
  for options in filter(None, (case.amid, case.short)):
    steps = roll(case.task, options, ends[-1])
    for last in steps['is_last'].T:
      np.testing.assert_array_equal(np.flatnonzero(last), ends)
    assert not steps['is_terminal'].any()
  if case.longer:
    more = roll(case.task, case.longer, length, num_envs=1)
    assert not more.pop('is_last').any()
    expected = {key: steps[key][: length + 1, :1] for key in more}
    assert_same(more, expected, case.rounding)


def check_terminal(case: Case) -> None:
  """Episodes that do not meet a limit end as terminal."""
  options = dict(case.ending)
  steps = roll(options.pop('task', case.task), options, case.terminal)
  assert steps['is_terminal'].any()
  np.testing.assert_array_equal(steps['is_terminal'], steps['is_last'])


def check_repeat(case: Case) -> None:
  """A repeated action gives the last observation and the sum of rewards."""
  repeat, count = case.repeat, 10
  once = {**case.repeating, 'repeat': 1}
  ours = roll(case.task, {**case.repeating, 'repeat': repeat}, count)
  single = roll(case.task, once, count * repeat, hold=repeat)
  assert not single['is_last'].any()
  rewards = single['reward'][1:].reshape((count, repeat, -1)).sum(1)
  given = ours.pop('reward')[1:]
  np.testing.assert_allclose(given, rewards, rtol=1e-5, atol=1e-6)
  expected = {key: single[key][::repeat] for key in ours}
  assert_same(ours, expected, case.rounding)


def check_rendering(case: Case) -> None:
  """Nothing is rendered unless the agent sees images."""
  rendered = set()

  def profile(frame, event, argument):
    if event == 'call' and frame.f_code.co_name == 'render':
      rendered.add(frame.f_code.co_filename)

  threading.setprofile(profile)  # Environments step in a thread of their own.
  try:
    steps = roll(case.task, case.options, 2, num_envs=1)
  finally:
    threading.setprofile(None)
  images = [k for k, v in steps.items() if v.ndim == 2 + IMAGE_RANK]
  assert images or not rendered, rendered


def assert_same(a: Steps, b: Steps, rounding: float = 0.0) -> None:
  """All keys have the same values, up to a difference."""
  assert set(a) == set(b)
  for key in a:
    np.testing.assert_allclose(a[key], b[key], 0, rounding, err_msg=key)


def _differ(a: Steps, b: Steps) -> bool:
  return any(not np.array_equal(a[key], b[key]) for key in a)


def checks_of(case: Case) -> list[Any]:
  """Returns the checks that apply to a case."""
  suite = registry.suite_of(case.task.split('_')[0])
  return [
    check_seeds,
    check_rendering,
    *([check_spaces] if suite.make else []),
    *([check_limit] if case.limit else []),
    *([check_terminal] if case.terminal else []),
    *([check_repeat] if case.repeat else []),
  ]
