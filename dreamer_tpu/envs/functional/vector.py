"""N functional environments that step together, with autoreset.

Autoreset is Gymnasium's NEXT_STEP, as in `envs.vector`. Every environment has a
key of its own, `key, now = jax.random.split(key)` in each reset and step, and
`now` goes to the environment's `reset` or `step`. Episodes thus depend neither
on the number of environments nor on how many steps a program takes.

An environment whose observation or reward is not finite, as when a simulation
diverges, is restarted: the step returns the first observation of its next
episode, without an end of the one before.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector.utils import create_empty_array

from dreamer_tpu.envs import rendering, vector
from dreamer_tpu.envs.conversion import Rules
from dreamer_tpu.envs.functional.environment import FunctionalEnv
from dreamer_tpu.envs.functional.wrappers import Converted, as_type
from dreamer_tpu.envs.observations import LOG
from dreamer_tpu.errors import UserError

Obs = dict[str, jax.Array]


class Carry(NamedTuple):
  """State of N environments.

  Attributes:
    state: Their states; arrays [N, ...].
    key: Their keys, uint32 [N, 2].
    ended: Whether their episodes have ended, bool [N].
    restarts: Number of their restarts, int32 [N].
  """

  state: Any
  key: Any
  ended: Any
  restarts: Any


def keys(seed: int, num_envs: int) -> np.ndarray:
  """Returns the first keys of N environments, uint32 [N, 2].

  Args:
    seed: Seed of all their randomness; see `envs.vector.seeds`.
    num_envs: Number N of environments.
  """
  return keys_of(vector.seeds(seed, num_envs))


def keys_of(seeds: list[int]) -> np.ndarray:
  """Returns the first keys of environments with seeds, uint32 [N, 2]."""
  with jax.default_device(jax.local_devices(backend='cpu')[0]):
    return np.stack([jax.random.PRNGKey(seed) for seed in seeds])


class Batch:
  """Functions that step N copies of an environment; to be traced.

  Args:
    env: Functional environment.

  Raises:
    UserError: The states after a reset and after a step differ in form.
  """

  def __init__(self, env: FunctionalEnv):
    self._env = env
    # Those of a state and an observation.
    self._types = _types(env)

  def reset(self, keys: jax.Array) -> tuple[Carry, Any]:
    """Starts episodes.

    Args:
      keys: Keys, uint32 [N, 2].

    Returns:
      The state, and observations [N, ...].
    """
    following, now = _split(keys)
    state, obs = self._start(now)
    ended, restarts = (jnp.zeros(len(keys), x) for x in (bool, jnp.int32))
    return Carry(state, following, ended, restarts), obs

  def step(
    self, carry: Carry, actions: Any
  ) -> tuple[Carry, Any, Any, Any, Any]:
    """Takes a step; an episode that has ended is reset instead.

    Args:
      carry: State, as returned by the last call.
      actions: Values of the action space, [N, ...].

    Returns:
      The state, observations [N, ...], rewards float32 [N], and the flags
      `terminated` and `truncated`, bool [N].
    """
    following, now = _split(carry.key)
    made = jax.vmap(self._env.step)(carry.state, actions, now)
    stepped = self._cast(made[:2])
    failed = ~jax.vmap(_finite)(stepped[1], made[2]) & ~carry.ended
    again = carry.ended | failed
    reward, terminated, truncated = (
      jnp.where(again, 0, x).astype(dtype)
      for x, dtype in zip(made[2:], (jnp.float32, bool, bool), strict=True)
    )

    def restart(stepped):
      pick = jax.vmap(lambda again, new, old: jnp.where(again, new, old))
      choose = lambda new, old: pick(again, new, old)
      return jax.tree.map(choose, self._start(now), stepped)

    # Few steps are the last of an episode, and resets may be slow.
    state, obs = jax.lax.cond(
      again.any(), restart, lambda stepped: stepped, stepped
    )
    ended, restarts = terminated | truncated, carry.restarts + failed
    carry = Carry(state, following, ended, restarts)
    return carry, obs, reward, terminated, truncated

  def _start(self, keys: jax.Array) -> tuple[Any, Any]:
    """Returns first states and observations."""
    return self._cast(jax.vmap(self._env.reset)(keys))

  def _cast(self, pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """Gives states and observations of a reset the types of those of a step."""
    return jax.tree.map(as_type, pair, self._types)


class Vector:
  """N environments as the agent sees them, as functions to be traced.

  Args:
    env: Functional environment.
    num_envs: Number N of environments.
    rules: Options of the conversion.
    repeat: Environment frames per step.

  Attributes:
    num_envs: Number N of environments.
    obs_space: Space of each observation key, as of `envs.VectorEnv`.
    act_space: Space of each action key.
    repeat: Environment frames per step.
    conversion: Conversion of these spaces from those of the environment.
    restarts: Restarts of environments, which the actor counts.

  Raises:
    UserError: The agent cannot take a space.
  """

  restarts = 0

  def __init__(
    self, env: FunctionalEnv, num_envs: int, rules: Rules, repeat: int = 1
  ):
    converted = Converted(env, rules)
    self.num_envs = num_envs
    self.repeat = repeat
    self.conversion = converted.conversion
    self.obs_space = vector.seen(self.conversion.obs_space)
    self.act_space = self.conversion.act_space
    self._env = env
    self._batch = Batch(converted)

  def reset(self, keys: jax.Array) -> tuple[Carry, Obs]:
    """Starts episodes.

    Args:
      keys: Keys, uint32 [N, 2]; see `keys`.

    Returns:
      The state, and what `step` returns.
    """
    carry, obs = self._batch.reset(keys)
    none = jnp.zeros(len(keys), bool)
    return carry, _with_flags(obs, jnp.zeros(len(keys)), ~none, none, none)

  def step(self, carry: Carry, actions: Obs) -> tuple[Carry, Obs]:
    """Steps all environments.

    Args:
      carry: State, as returned by the last call.
      actions: Array [N, ...] for each action key.

    Returns:
      The state, and arrays as those of `envs.VectorEnv.step`.
    """
    before = carry
    carry, obs, reward, over, _ = self._batch.step(carry, actions)
    first = before.ended | (carry.restarts > before.restarts)
    return carry, _with_flags(obs, reward, first, carry.ended, over)

  def screenshots(
    self, carry: Carry, indices: Sequence[int]
  ) -> dict[int, np.ndarray | str]:
    """Returns screenshots of some environments; not to be traced.

    Args:
      carry: State, as returned by the last call.
      indices: Numbers of the environments.

    Returns:
      uint8 [H, W, 3] by number, or the reason why there is none.
    """
    return screenshots(self._env, carry.state, indices)


def screenshots(
  env: Any, state: Any, indices: Sequence[int]
) -> dict[int, np.ndarray | str]:
  """Returns screenshots of some of N environments.

  Args:
    env: Functional environment.
    state: Their states, arrays [N, ...].
    indices: Numbers of the environments.
  """
  if not hasattr(env, 'render'):
    return dict.fromkeys(indices, 'it has no render()')
  own = {i: _take(state, i) for i in indices}
  return {
    i: rendering.shrink(functools.partial(env.render, one))
    for i, one in own.items()
  }


@jax.jit
def _take(state: Any, index: int) -> Any:
  return jax.tree.map(lambda x: x[index], state)


def _types(env: FunctionalEnv) -> tuple[Any, Any]:
  """Returns shapes and types of a state and an observation of a step."""
  actions = create_empty_array(env.action_space, 1)
  action = jax.tree.map(lambda x: x[0], actions)

  def example(key: jax.Array) -> tuple[Any, Any]:
    first = env.reset(key)
    return first, env.step(first[0], action, key)[:2]

  first, following = jax.eval_shape(example, jax.random.PRNGKey(0))
  one, two = _form(first), _form(following)
  if one != two:
    differing = sorted(dict(one.items() ^ two.items()))
    raise UserError(
      'the states or observations of reset() and step() differ in form: '
      f'{", ".join(differing)[:300]}'
    )
  return following


def _form(tree: Any) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of arrays by their paths."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): x.shape for path, x in leaves}


def _with_flags(obs: Obs, reward: Any, first: Any, last: Any, over: Any) -> Obs:
  flags = {'is_first': first, 'is_last': last, 'is_terminal': over}
  return {**obs, 'reward': reward, **flags}


def _finite(obs: Any, reward: Any) -> jax.Array:
  """Returns whether a reward and what is observed are finite."""
  if isinstance(obs, dict):  # Logs may be NaN.
    obs = {k: v for k, v in obs.items() if not f'{k}/'.startswith(LOG)}
  floats = [
    x
    for x in jax.tree.leaves((obs, reward))
    if jnp.issubdtype(x.dtype, jnp.floating)
  ]
  return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()


def _split(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the following keys and those of this step, uint32 [N, 2] each."""
  both = jax.vmap(jax.random.split)(keys)
  return both[:, 0], both[:, 1]
