"""A small functional environment with every kind of space."""

import gymnasium.spaces as gs
import jax
import jax.numpy as jnp
import numpy as np

from dreamer_tpu.envs.functional import TimeLimit


class Walk:
  """A random walk; its episodes end at +-5 and, if set, after `length` steps.

  Args:
    name: 'broken' for one whose rewards are not numbers in every fifth step;
      'raises' and 'changes' for wrong functions.
    config: length of an episode, 0 for no limit.
  """

  observation_space = gs.Dict(
    {
      'picture': gs.Box(0, 1, (3, 20, 24), np.float32),
      'place': gs.Box(-9, 9, (), np.float32),
      'choice': gs.Discrete(11, start=-5),
      'log/far': gs.Box(-np.inf, np.inf, (), np.float32),
    }
  )
  action_space = gs.Dict(
    {
      'push': gs.Box(-0.5, 0.5, (2,), np.float32),
      'turn': gs.MultiDiscrete([2, 3], start=[0, -1]),
    }
  )

  def __init__(self, name, config):
    del config
    self._name = name

  def reset(self, key):
    place = jax.random.uniform(key, (), minval=-1.0)
    # Weak types, as in several libraries.
    state = {'place': place, 'time': 0}
    return state, self._observe(state)

  def step(self, state, action, key):
    noise = jax.random.normal(key)
    move = action['push'].sum() + action['turn'].sum() - 0.5 + noise
    place = jnp.clip(state['place'] + move, -5, 5)
    state = {'place': place, 'time': state['time'] + 1}
    ended = jnp.abs(place) >= 5
    if self._name == 'raises':
      state['missing']
    if self._name == 'changes':
      state['more'] = place
    if self._name == 'broken':
      move = jnp.where(state['time'] % 5 == 0, jnp.nan, move)
    return state, self._observe(state), move, ended, False

  def _observe(self, state):
    place = state['place']
    picture = jnp.zeros((3, 20, 24)).at[1].set((place + 5) / 10)
    choice = jnp.round(place).astype(jnp.int32)
    seen = {'picture': picture, 'place': place, 'choice': choice}
    return {**seen, 'log/far': jnp.abs(place)}

  def render(self, state):
    """Returns one color, which tells the place."""
    level = np.uint8(20 * (float(state['place']) + 5))
    return np.full((32, 48, 3), level)


def make(name, config):
  """Makes a walk, for `registry.register`."""
  env = Walk(name, config)
  return TimeLimit(env, config.length) if config.length else env
