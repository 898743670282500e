"""Functional environments against obvious loops over their own functions."""

import os
import subprocess
import sys
import threading

import gymnasium.spaces as gs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector.utils import batch_space, create_empty_array

import dreamer_tpu.envs
from dreamer_tpu.actor.episodes import EpisodeStats, finished
from dreamer_tpu.envs import (
  Conversion,
  Rules,
  functional,
  registry,
  wrappers,
)
from dreamer_tpu.envs.functional import statistics
from dreamer_tpu.envs.together import Together
from dreamer_tpu.envs.vector import seeds
from dreamer_tpu.envs.waiting import Patience
from dreamer_tpu.errors import UserError
from tests.helpers import env_checks, functional_env
from tests.helpers.env_checks import Case

NUM = 3
dreamer_tpu.envs.register('walk', functional_env.make, functional=True)
DEFAULT = {'length': 0, 'repeat': 1}


def batch(env):
  """Returns the space of the actions of N environments."""
  return gs.Dict({k: batch_space(v, NUM) for k, v in env.act_space.items()})


def zeros(env):
  """Returns actions 0 of N environments."""
  return {k: v[0] for k, v in create_empty_array(batch(env), 1).items()}


def loop(env, conversion, seed, actions):
  """Steps one environment with its own functions, episode after episode.

  Yields the agent's observations, as `envs.VectorEnv` returns them.
  """
  reset, step = jax.jit(env.reset), jax.jit(env.step)
  key, last = jax.random.PRNGKey(seed), True
  for action in actions:
    key, now = jax.random.split(key)
    if last:
      state, obs = reset(now)
      reward, over, cut = 0, False, False
    else:
      own = conversion.action(action)
      state, obs, reward, over, cut = step(state, own, now)
    flags = {'is_first': last, 'is_last': over | cut, 'is_terminal': over}
    last = bool(over | cut)
    seen = conversion.observation(jax.tree.map(np.asarray, obs))
    yield {**seen, **flags, 'reward': reward}


def scan(env, keys, actions):
  """Steps N environments in one program; returns arrays [T, N, ...]."""

  def run(keys, actions):
    carry, first = env.reset(keys)
    return first, jax.lax.scan(env.step, carry, actions)[1]

  first, rest = jax.jit(run)(keys, actions)
  return {k: np.concatenate([first[k][None], rest[k]]) for k in first}


def check_against_loop(task, options, steps):
  """Compares the program and the host view with the loop, for `steps`.

  Returns arrays [T + 1, N, ...] by key.
  """
  config = env_checks.config_of(task, options)
  env = dreamer_tpu.envs.make_functional(task, NUM, config)
  space = batch(env)
  space.seed(0)
  actions = [space.sample() for _ in range(steps)]
  stacked = {k: np.stack([x[k] for x in actions]) for k in space}
  program = scan(env, functional.keys(7, NUM), stacked)
  host = dreamer_tpu.envs.make_vector(task, NUM, 7, config)
  viewed = [host.reset(), *map(host.step, actions)]
  host.close()
  assert host.obs_space == env.obs_space
  suite = dreamer_tpu.envs.registry.suite_of(task.split('_')[0])
  own = suite.make_functional(task.split('_', 1)[1], config[task.split('_')[0]])
  for i, seed in enumerate(seeds(7, NUM)):
    mine = [{k: v[i] for k, v in action.items()} for action in actions]
    slow = loop(own, env.conversion, seed, [None, *mine])
    for t, expected in enumerate(slow):
      for key, value in expected.items():
        label = f'{key}, environment {i}, step {t}'
        close = {'rtol': 1e-5, 'atol': 1e-5, 'err_msg': label}
        np.testing.assert_allclose(program[key][t, i], value, **close)
        np.testing.assert_allclose(viewed[t][key][i], value, **close)
  env_checks.check_steps(program, env.obs_space)
  return program


@pytest.mark.parametrize('length', [0, 6])
def test_walk(length):
  steps = check_against_loop('walk_it', {**DEFAULT, 'length': length}, 60)
  assert (steps['is_last'].sum(0) >= 3).all()
  assert steps['is_terminal'].any()
  cut = steps['is_last'] & ~steps['is_terminal']
  assert cut.any() == bool(length)


def test_other_numbers_of_environments_and_steps_give_the_same_episodes():
  config = env_checks.config_of('walk_it', DEFAULT)
  few, many = (
    dreamer_tpu.envs.make_functional('walk_it', n, config) for n in (1, 4)
  )
  none = lambda n, steps: {
    'push': np.zeros((steps, n, 2), np.float32),
    'turn/0': np.zeros((steps, n), np.int32),
    'turn/1': np.ones((steps, n), np.int32),
  }
  one = scan(few, functional.keys(0, 1), none(1, 40))
  four = scan(many, functional.keys(0, 4), none(4, 20))
  for key, value in four.items():
    np.testing.assert_allclose(value[:, :1], one[key][:21], 1e-6, 1e-6)


def test_environments_that_diverge_are_restarted():
  config = env_checks.config_of('walk_broken', DEFAULT)
  env = dreamer_tpu.envs.make_functional('walk_broken', NUM, config)
  host = dreamer_tpu.envs.make_vector('walk_broken', NUM, 0, config)
  carry, first = jax.jit(env.reset)(functional.keys(0, NUM))
  rows, viewed = [first], [host.reset()]
  step = jax.jit(env.step)
  push = np.full((NUM, 2), 0.5, np.float32)  # Takes the drift away.
  action = {**zeros(env), 'push': push, 'turn/1': np.ones(NUM, np.int32)}
  counts = []
  for _ in range(20):
    carry, obs = step(carry, action)
    rows.append(obs)
    viewed.append(host.step(action))
    counts.append((host.restarts, carry.restarts.sum()))
  host.close()
  for one, two in zip(rows, viewed, strict=True):
    assert set(one) == set(two)
    for key in one:
      np.testing.assert_allclose(one[key], two[key], 1e-6, 1e-6)
  steps = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
  last = steps['is_last']
  starts = np.zeros_like(last)
  for i in range(NUM):
    age = 0
    for t in range(1, len(last)):
      # The last step of an episode, or a failure, is followed by a first one.
      starts[t, i] = last[t - 1, i] or age == 4
      age = 0 if starts[t, i] else age + 1
  np.testing.assert_array_equal(steps['is_first'][1:], starts[1:])
  failures = (starts[1:] & ~last[:-1]).sum(0)
  np.testing.assert_array_equal(carry.restarts, failures)
  assert failures.all()
  assert np.isfinite(steps['reward']).all()
  assert all(one == two for one, two in counts)


def test_environments_that_diverge_too_often_end_the_run():
  config = env_checks.config_of('walk_broken', DEFAULT)
  config.restarts = 0
  host = dreamer_tpu.envs.make_vector('walk_broken', NUM, 0, config)
  host.reset()
  message = 'step 5: environment 0: an observation or a reward is not finite'
  push = np.full((NUM, 2), 0.5, np.float32)
  action = {**zeros(host), 'push': push, 'turn/1': np.ones(NUM, np.int32)}
  for _ in range(4):
    host.step(action)
  with pytest.raises(UserError, match=message):
    host.step(action)


def test_makers_get_number_and_role():
  given = []

  def make(name, config, index, role):
    variables = [os.environ[key] for key in (registry.INDEX, registry.ROLE)]
    given.append((index, role, *variables))
    return functional_env.make(name, config)

  dreamer_tpu.envs.register('numbered', make, functional=True)
  config = env_checks.config_of('numbered_one', DEFAULT)
  dreamer_tpu.envs.make_functional('numbered_one', NUM, config, first=4)
  dreamer_tpu.envs.make_vector(
    'numbered_one', NUM, 0, config, role='eval', first=8
  ).close()
  assert given == [(4, 'train', '4', 'train'), (8, 'eval', '8', 'eval')]
  assert registry.INDEX not in os.environ


def test_renderers_are_closed_before_the_end_of_the_interpreter():
  code = """
import weakref, mujoco
weakref.finalize(mujoco, int)  # Registers its function at exit before MuJoCo.
from dreamer_tpu.envs.functional import Screen
screen = Screen(mujoco.MjModel.from_xml_string('<mujoco><worldbody/></mujoco>'))
print(screen({}).shape)
"""
  command = [sys.executable, '-c', code]
  ended = subprocess.run(command, capture_output=True, text=True, check=True)
  assert (ended.stdout, ended.stderr) == ('(128, 128, 3)\n', '')


@pytest.mark.parametrize('length', [0, 6])
def test_screenshots(length):
  config = env_checks.config_of('walk_it', {'length': length, 'repeat': 2})
  env = dreamer_tpu.envs.make_functional('walk_it', NUM, config)
  carry, obs = jax.jit(env.reset)(functional.keys(0, NUM))
  host = dreamer_tpu.envs.make_vector('walk_it', NUM, 0, config, render=True)
  host.reset()
  for shots in (env.screenshots(carry, [0, 2]), host.screenshots([0, 2])):
    assert set(shots) == {0, 2}
    for i, shot in shots.items():
      assert shot.shape == (32, 48, 3)
      assert (shot == int(20 * (float(obs['place'][i]) + 5))).all()
  host.close()


def test_a_slow_first_screenshot_is_no_failure():
  now, looked = [0.0], threading.Event()

  def clock():
    if now[0]:
      looked.set()
    return now[0]

  class Slow(functional_env.Walk):
    def render(self, state):
      now[0] += 100  # Seconds.
      assert looked.wait(60)
      return super().render(state)

  def make():
    vector = functional.HostVector(Slow('slow', None), NUM)
    return wrappers.ConvertedVector(vector)

  env = Together(make, 'walk_slow', 0, Patience(60, clock=clock))
  env.reset(seed=[0, 1, 2])
  assert env.screenshots([1])[1].shape == (32, 48, 3)
  env.close()


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('raises', r'the environment \(functional_env.py:\d+\): KeyError'),
    ('changes', "differ in form: .*'more'"),
  ],
)
def test_wrong_functions_are_one_line(name, message):
  config = env_checks.config_of('walk_it', DEFAULT)
  with pytest.raises(UserError, match=f'^task walk_{name}: .*{message}'):
    dreamer_tpu.envs.make_functional(f'walk_{name}', NUM, config)


def test_statistics_are_those_of_the_host():
  config = env_checks.config_of('walk_it', DEFAULT)
  env = dreamer_tpu.envs.make_functional('walk_it', NUM, config)

  def step(carry, _):
    env_carry, stats = carry
    env_carry, obs = env.step(env_carry, zeros(env))
    stats = statistics.update(stats, obs)
    return (env_carry, stats), (obs, stats)

  @jax.jit
  def run(keys):
    carry, obs = env.reset(keys)
    start = (carry, statistics.start(obs))
    return obs, jax.lax.scan(step, start, length=80)[1]

  first, (obs, stats) = run(functional.keys(0, NUM))
  slow = EpisodeStats(NUM)
  slow.update(jax.tree.map(np.asarray, first))
  expected = []
  for t in range(80):
    expected += slow.update({k: np.asarray(v[t]) for k, v in obs.items()})
  given = finished(jax.tree.map(np.asarray, stats), np.asarray(obs['is_last']))
  assert len(given) > NUM
  for one, two in zip(given, expected, strict=True):
    assert one['env'] == two['env']
    assert one['length'] == two['length']
    assert one['score'] == pytest.approx(two['score'], abs=1e-4)
    assert one['stats'] == pytest.approx(two['stats'], abs=1e-4)


def test_sums_of_long_episodes_are_exact():
  """Their rewards are too small for a plain sum of type float32."""
  steps = 200_000
  obs = {'reward': jnp.zeros(1), 'is_first': jnp.ones(1, bool)}
  reward = {key: jnp.full(1, 0.1) for key in ('reward', 'log/cost')}

  @jax.jit
  def run():
    start = statistics.start({**obs, 'log/cost': jnp.zeros(1)})
    step = {**reward, 'is_first': jnp.zeros(1, bool)}
    update = lambda stats, _: (statistics.update(stats, step), None)
    return jax.lax.scan(update, start, length=steps)[0]

  stats = run()
  exact = steps * float(np.float32(0.1))
  for total in (stats['score'], stats['logs']['cost']['sum']):
    assert float(total[0]) == pytest.approx(exact, rel=1e-7)


SOUND = Case(
  task='walk_it',
  options=DEFAULT,
  limit=2,
  short={'repeat': 2, 'length': 4},
  amid={'repeat': 2, 'length': 3},
  terminal=60,
  ending=DEFAULT,
)


@pytest.mark.parametrize('check', env_checks.checks_of(SOUND))
def test_host_view(check):
  check(SOUND)


def test_traced_conversion_is_the_same():
  observed = gs.Dict(
    image=gs.Box(0, 255, (4, 30, 48), np.uint8),
    unit=gs.Box(0, 1, (40, 40, 3), np.float32),
    board=gs.Box(-1, 1, (5, 5), np.int8),
    bits=gs.MultiBinary((2, 3)),
    uneven=gs.MultiDiscrete([2, 5], start=[1, -1]),
    deep=gs.Tuple([gs.Discrete(3, start=1), gs.Box(-2, 2, (2, 3, 4))]),
  )
  acted = gs.Dict(
    both=gs.Box(-3, 5, (2, 2)),
    half=gs.Box(np.float32([0, -np.inf]), np.float32([np.inf, np.inf])),
    whole=gs.Box(0, 3000, (2,), np.int32),
    codes=gs.Box(-2, 2, (3,), np.int8),
    pair=gs.Tuple([gs.MultiBinary(2), gs.MultiDiscrete([2, 5])]),
  )
  conversion = Conversion(observed, acted, Rules(action_scale=2.0))
  agent = gs.Dict(conversion.act_space)
  observed.seed(0)
  agent.seed(0)
  traced_observation = jax.jit(conversion.traced_observation)
  traced_action = jax.jit(conversion.traced_action)
  for _ in range(5):
    value, action = observed.sample(), agent.sample()
    for key, expected in conversion.observation(value).items():
      seen = traced_observation(value)[key]
      assert seen.dtype == expected.dtype
      # Pillow rounds resized images in another way.
      off = int(key in ('image', 'unit'))
      np.testing.assert_allclose(
        np.asarray(seen, float), expected, 1e-6, off, err_msg=key
      )
    given = jax.tree.map(np.asarray, traced_action(action))
    expected = conversion.action(action)
    assert jax.tree.structure(given) == jax.tree.structure(expected)
    assert acted.contains(given)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, 1e-6, 1e-6), given, expected
    )
