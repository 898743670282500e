"""Suites of JAX functions against their libraries, stepped by hand."""

import functools
from typing import Any, NamedTuple

import gymnasium.spaces as gs
import jax
import numpy as np
import pytest
from gymnasium.vector.utils import batch_space

import dreamer_tpu.envs
from dreamer_tpu.envs import functional
from dreamer_tpu.envs.vector import seeds
from tests.helpers import env_checks

NUM = 2


class Step(NamedTuple):
  """Result of a library's reset or step."""

  state: Any
  obs: Any
  reward: Any = 0.0
  done: Any = False
  terminal: Any = False


def gymnax_loop(name, length):
  """Returns functions of Gymnax that reset and step."""
  gymnax = pytest.importorskip('gymnax', reason='gymnax is not installed')
  env, params = gymnax.make(name)
  if length:
    params = params.replace(max_steps_in_episode=length)

  def reset(key):
    obs, state = env.reset_env(key, params)
    return Step(state, obs)

  def step(state, action, key):
    obs, state, reward, done, _ = env.step_env(key, state, action, params)
    done |= state.time >= params.max_steps_in_episode
    # As documented for the environments that are tested.
    fallen = (abs(obs[0]) > 2.4) | (abs(obs[2]) > 12 * 2 * np.pi / 360)
    return Step(state, obs, reward, done, fallen & ('CartPole' in name))

  return reset, step


def craftax_loop(name, length):
  """Returns functions of Craftax that reset and step."""
  pytest.importorskip('craftax', reason='craftax is not installed')
  from craftax.craftax_classic.constants import BlockType
  from craftax.craftax_env import make_craftax_env_from_name

  env = make_craftax_env_from_name(name, auto_reset=False)
  params = env.default_params.replace(max_timesteps=length)

  def reset(key):
    obs, state = env.reset(key, params)
    return Step(state, obs)

  def step(state, action, key):
    obs, state, reward, done, _ = env.step(key, state, action, params)
    place = state.map[tuple(state.player_position)]
    dead = (state.player_health <= 0) | (place == BlockType.LAVA.value)
    return Step(state, obs, reward, done, dead)

  return reset, step


def limited(env, length):
  """Returns functions that reset and step, with Brax's own time limit."""
  from brax.envs.wrappers.training import EpisodeWrapper

  env = EpisodeWrapper(env, length, 1)

  def reset(key):
    state = env.reset(key)
    return Step(state, state.obs)

  def step(state, action, key):
    del key
    state = env.step(state, action)
    terminal = (state.done > 0) & (state.info['truncation'] == 0)
    return Step(state, state.obs, state.reward, state.done > 0, terminal)

  return reset, step


def brax_loop(name, length):
  """Returns functions of Brax that reset and step."""
  envs = pytest.importorskip('brax.envs', reason='brax is not installed')
  return limited(envs.get_environment(name), length)


def playground_loop(name, length):
  """Returns functions of MuJoCo Playground that reset and step."""
  playground = pytest.importorskip(
    'mujoco_playground', reason='playground is not installed'
  )
  env = playground.registry.load(name, config_overrides={'impl': 'jax'})
  return limited(env, length)


def episodes(reset, step, seed, actions):
  """Yields a `Step` for each action, and whether it is the first."""
  key, last, state = jax.random.PRNGKey(seed), True, None
  reset, step = jax.jit(reset), jax.jit(step)
  for action in actions:
    key, now = jax.random.split(key)
    result = reset(now) if last else step(state, action, now)
    yield result, last
    state, last = result.state, bool(result.done)


@pytest.mark.parametrize(
  ('task', 'loop', 'length', 'steps'),
  [
    ('gymnax_CartPole-v1', gymnax_loop, 12, 60),
    ('gymnax_Pendulum-v1', gymnax_loop, 9, 30),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        ('craftax_Craftax-Classic-Symbolic-v1', craftax_loop, 60, 200),
        ('craftax_Craftax-Classic-Pixels-v1', craftax_loop, 8, 30),
        ('brax_inverted_pendulum', brax_loop, 12, 60),
        ('playground_CartpoleBalance', playground_loop, 9, 30),
      )
    ),
  ],
)
def test_transitions_are_those_of_the_library(task, loop, length, steps):
  _, name = task.split('_', 1)
  own = loop(name, length)
  config = env_checks.config_of(task, {'length': length})
  env = dreamer_tpu.envs.make_functional(task, NUM, config)
  space = gs.Dict({k: batch_space(v, NUM) for k, v in env.act_space.items()})
  space.seed(0)
  actions = [space.sample() for _ in range(steps)]
  stacked = jax.tree.map(lambda *x: np.stack(x), *actions)

  @jax.jit
  def run(keys, actions):
    carry, first = env.reset(keys)
    return first, jax.lax.scan(env.step, carry, actions)[1]

  first, rest = run(functional.keys(3, NUM), stacked)
  given = {k: np.concatenate([first[k][None], rest[k]]) for k in first}
  env_checks.check_steps(given, env.obs_space)
  key = next(iter(env.obs_space))
  for i, seed in enumerate(seeds(3, NUM)):
    mine = [{k: v[i] for k, v in action.items()} for action in actions]
    mine = [env.conversion.action(action) for action in mine]
    count = 0
    for t, (expected, starts) in enumerate(episodes(*own, seed, [None, *mine])):
      close = functools.partial(
        np.testing.assert_allclose,
        rtol=1e-4,
        atol=1e-4,
        err_msg=f'environment {i}, step {t}',
      )
      obs = np.asarray(expected.obs)
      if given[key].dtype == np.uint8:
        obs = env.conversion.observation({key: obs}, keys=[key])[key]
        # Resized in another way than by Pillow.
        np.testing.assert_allclose(np.asarray(given[key][t, i], int), obs, 0, 2)
      else:
        close(given[key][t, i], obs)
      close(given['reward'][t, i], float(expected.reward))
      flags = [given[k][t, i] for k in ('is_first', 'is_last', 'is_terminal')]
      assert flags == [starts, expected.done, expected.terminal], (i, t)
      count += bool(expected.done)
    assert count >= 3
