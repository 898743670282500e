"""Acts in environments that are JAX functions, many steps in one program."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dreamer_tpu.actor.actor import Arrays, transition
from dreamer_tpu.actor.episodes import finished
from dreamer_tpu.envs.functional import Vector, statistics
from dreamer_tpu.envs.restarting import Restarts

Tree = dict[str, Any]


class PolicyFunction(Protocol):
  """A step of the policy as a function; see `learner.acting`."""

  def initial_carry(self) -> Tree:
    """Returns the carry of environments that start an episode."""
    ...

  def act(
    self, params: Tree, carry: Tree, obs: Tree, count: Any, seed: Any
  ) -> tuple[Tree, Tree, Tree]:
    """Returns carry, actions and latents."""
    ...


class Policy(Protocol):
  """The function, its weights and its counters; see `learner.acting`."""

  device: jax.Device
  seed: jax.Array
  params: Tree
  version: int
  steps: int

  @property
  def function(self) -> PolicyFunction:
    """The step as a function."""
    ...


class Unroll:
  """K steps of N environments and their policy, as functions to be traced.

  Args:
    env: N environments.
    policy: Function of the policy.
    length: Number K of steps.
  """

  def __init__(self, env: Vector, policy: PolicyFunction, length: int):
    self._env = env
    self._policy = policy
    self._length = length

  def start(self, keys: jax.Array) -> Tree:
    """Returns the carry of environments that start an episode.

    Args:
      keys: Keys of the environments, uint32 [N, 2].
    """
    env, obs = self._env.reset(keys)
    return {
      'policy': self._policy.initial_carry(),
      'env': env,
      'obs': obs,
      'stats': statistics.start(obs),
    }

  def run(
    self, params: Tree, carry: Tree, count: Any, seed: Any
  ) -> tuple[Tree, Tree]:
    """Takes K steps.

    Args:
      params: Weights of the policy.
      carry: Carry after the previous steps.
      count: Steps taken before, uint32; with `seed` it determines the actions.
      seed: Seed of the actions, uint32.

    Returns:
      The new carry, and these arrays: 'steps' [K, N, ...] by key, as replay
      stores them; 'stats' and 'is_last' [K, N], the statistics of episodes
      after each step and whether they end with it; 'restarts' int32 [N], the
      restarts of each environment so far.
    """

    def body(carry, i):
      obs = carry['obs']
      policy, action, latents = self._policy.act(
        params, carry['policy'], obs, count + i, seed
      )
      env, following = self._env.step(carry['env'], action)
      stats = statistics.update(carry['stats'], following)
      carry = {'policy': policy, 'env': env, 'obs': following, 'stats': stats}
      return carry, {
        'steps': transition(obs, action, latents),
        'stats': stats,
        'is_last': following['is_last'],
      }

    index = jnp.arange(self._length, dtype=jnp.uint32)
    carry, out = jax.lax.scan(body, carry, index)
    return carry, {**out, 'restarts': carry['env'].restarts}


class UnrolledActor:
  """Takes K steps of N environments at a time, in one program.

  The next K steps are computed while the last ones are copied to the host and
  stored.

  Args:
    env: N environments.
    policy: The policy. Steps take the weights that it has when they begin.
    keys: Keys of the environments, uint32 [N, 2].
    length: Number K of steps.
    restarts: Counter of the restarts of environments.

  Attributes:
    compiles: Name of the program.
  """

  compiles = 'environments and policy'

  def __init__(
    self,
    env: Vector,
    policy: Policy,
    keys: np.ndarray,
    length: int,
    restarts: Restarts,
  ):
    self._env = env
    self._policy = policy
    self._keys = keys
    self._length = length
    self._restarts = restarts
    self._restarted = np.zeros(env.num_envs, np.int32)
    unroll = Unroll(env, policy.function, length)
    self._start = jax.jit(unroll.start)
    self._run = jax.jit(unroll.run, donate_argnums=1)
    self._carry: Tree | None = None
    self._ahead: Tree | None = None  # Results of the steps after `steps`.
    self._version: int | None = None

  @property
  def version(self) -> int:
    """Updates that the weights which act now have had."""
    return self._policy.version if self._version is None else self._version

  def step(self, store: Callable[[Arrays], None]) -> list[dict[str, Any]]:
    """Returns K steps of every environment and begins the next.

    Args:
      store: Receives the steps, [K, N, ...] by key, for example
        `Replay.extend`.

    Returns:
      The episodes that ended, see `EpisodeStats.update`, with 'ago', the steps
      of all environments since then.

    Raises:
      UserError: An environment was restarted too often.
    """
    device, taken = self._policy.device, self._policy.steps
    if self._carry is None or self._ahead is None:
      self._carry = self._start(jax.device_put(self._keys, device))
      self._ahead = self._begin(taken)
    result = self._ahead
    self._ahead = self._begin(taken + self._length)
    result = jax.device_get(result)
    self._count_restarts(result)
    store(result['steps'])
    self._policy.steps += self._length
    last = result['is_last']
    ended = finished(result['stats'], last)
    ago = (self._length - 1 - np.nonzero(last)[0]) * last.shape[1]
    return [{**x, 'ago': n} for x, n in zip(ended, ago.tolist(), strict=True)]

  def _begin(self, count: int) -> Tree:
    """Begins K steps, without waiting for them."""
    policy = self._policy
    self._version = policy.version
    taken = jax.device_put(np.uint32(count), policy.device)
    self._carry, result = self._run(
      policy.params, self._carry, taken, policy.seed
    )
    for array in jax.tree.leaves(result):
      array.copy_to_host_async()
    return result

  def _count_restarts(self, result: Tree) -> None:
    """Counts and shows restarts; too many without an end raise an error."""
    self._restarts.ended(result['is_last'].any(0))
    new = result['restarts'] - self._restarted
    self._restarts.diverged(new, self._policy.steps)
    self._restarted = result['restarts']
    self._env.restarts = self._restarts.total
