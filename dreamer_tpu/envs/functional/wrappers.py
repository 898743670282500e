"""Wrappers of functional environments."""

from typing import Any

import jax
import jax.numpy as jnp
from gymnasium.spaces import Dict, Space

from dreamer_tpu.envs.conversion import DEFAULT, Conversion, Rules
from dreamer_tpu.envs.functional.environment import FunctionalEnv


class Converted:
  """An environment with flat Dict spaces of the kinds of the agent.

  Args:
    env: Functional environment.
    rules: Options of the conversion.

  Attributes:
    conversion: Conversion of its spaces.

  Raises:
    UserError: The agent cannot take a space.
  """

  def __init__(self, env: FunctionalEnv, rules: Rules = DEFAULT):
    self._env = env
    spaces = env.observation_space, env.action_space
    self.conversion = Conversion(*spaces, rules)
    self.observation_space: Space = Dict(self.conversion.obs_space)
    self.action_space: Space = Dict(self.conversion.act_space)

  def reset(self, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
    """Starts an episode."""
    state, obs = self._env.reset(key)
    return state, self.conversion.traced_observation(obs)

  def step(self, state: Any, action: dict[str, jax.Array], key: jax.Array):
    """Takes a step with an action of the agent."""
    own = self.conversion.traced_action(action)
    state, obs, *result = self._env.step(state, own, key)
    return state, self.conversion.traced_observation(obs), *result


class TimeLimit:
  """Truncates episodes that do not terminate in their first steps.

  Its states are (state of the environment, steps so far).

  Args:
    env: Functional environment.
    length: Maximum number of steps of an episode.
  """

  def __init__(self, env: FunctionalEnv, length: int):
    self._env = env
    self._length = length
    self.observation_space = env.observation_space
    self.action_space = env.action_space
    if hasattr(env, 'render'):
      self.render = lambda state: env.render(state[0])

  def reset(self, key: jax.Array):
    """Starts an episode."""
    state, obs = self._env.reset(key)
    return (state, jnp.int32(0)), obs

  def step(self, state: Any, action: Any, key: jax.Array):
    """Takes a step."""
    inner, count = state
    inner, obs, reward, over, cut = self._env.step(inner, action, key)
    count += 1
    cut = jnp.asarray(cut, bool) | (count >= self._length)
    over = jnp.asarray(over, bool)
    return (inner, count), obs, reward, over, cut & ~over


class Repeat:
  """Repeats each action, until the episode ends; rewards are added.

  Args:
    env: Functional environment.
    count: Number of its steps per step.
  """

  def __init__(self, env: FunctionalEnv, count: int):
    self._env = env
    self._count = count
    self.observation_space = env.observation_space
    self.action_space = env.action_space
    if hasattr(env, 'render'):
      self.render = env.render

  def reset(self, key: jax.Array):
    """Starts an episode."""
    return self._env.reset(key)

  def step(self, state: Any, action: Any, key: jax.Array):
    """Takes `count` steps, or those to the end of the episode."""

    def body(now: Any, key: jax.Array):
      state, _, total, over, cut = now
      following, obs, reward, *flags = self._env.step(state, action, key)
      made = (following, obs, total + reward, *flags)
      keep = over | cut
      pick = lambda old, new: jnp.where(keep, old, new).astype(old.dtype)
      return jax.tree.map(pick, now, made), None

    shapes = jax.eval_shape(self._env.step, state, action, key)
    blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[1])
    state = jax.tree.map(as_type, state, shapes[0])
    false = jnp.bool_(False)
    start = (state, blank, jnp.float32(0), false, false)
    keys = jax.random.split(key, self._count)
    return jax.lax.scan(body, start, keys)[0]


def as_type(value: Any, like: Any) -> jax.Array:
  """Returns a value in the type of another; numbers of Python have none."""
  if jax.dtypes.issubdtype(like.dtype, jax.dtypes.extended):
    return value  # Keys.
  return jax.lax.convert_element_type(value, like.dtype)
