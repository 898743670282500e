"""Restarts of a suite's own vector environment."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np

from dreamer_tpu.envs.restarting import RESTARTED, Failure, Restarts
from dreamer_tpu.envs.waiting import CLOSING, Caller, Hung, Patience


@runtime_checkable
class Screenshots(Protocol):
  """A vector environment that can be rendered."""

  def screenshots(self, indices: list[int]) -> dict[int, np.ndarray | str]:
    """Returns screenshots, or why there are none, by environment."""
    ...


class Together(gymnasium.vector.VectorEnv):
  """A vector environment that is restarted as a whole when it fails.

  Args:
    make: Makes the vector environment, as `wrappers.ConvertedVector`.
    task: Name of the task, for messages.
    restarts: Maximum number of restarts before an episode ends.
    patience: Limits the time of a step.
  """

  def __init__(
    self, make: Callable[[], Any], task: str, restarts: int, patience: Patience
  ):
    self._make = make
    self._call = Caller(patience)
    self._env = self._call(make, starts=True)
    self._step = 0
    self.num_envs = self._env.num_envs
    # Of all environments at once, and of single ones that restart themselves.
    self._restarts = Restarts(task, 1, restarts)
    self._single = Restarts(task, self.num_envs, restarts)
    self.metadata = self._env.metadata
    self.single_observation_space = self._env.single_observation_space
    self.single_action_space = self._env.single_action_space
    self.conversion = self._env.conversion

  @property
  def restarts(self) -> int:
    """Restarts so far, of all environments at once or of single ones."""
    return self._restarts.total + self._single.total

  def reset(self, *, seed=None, options=None):
    """Starts new episodes; `seed` is None or a list of seeds."""
    if seed is not None:
      self._restarts.seed(seed[:1])
    try:
      return self._call(lambda: self._env.reset(seed=seed, options=options))
    except Exception as error:
      return self._restart(error)

  def step(self, actions):
    """Steps all environments."""
    self._step += 1
    try:
      result = self._call(self._env.step, actions)
    except Exception as error:
      obs, infos = self._restart(error)
      ended = np.zeros((2, self.num_envs), bool)
      return obs, np.zeros(self.num_envs), *ended, infos
    ended = result[2] | result[3]
    self._restarts.ended(ended.any(keepdims=True))
    self._single.ended(ended)
    none = np.zeros(self.num_envs, int)
    self._single.diverged(result[4].get(RESTARTED, none), self._step)
    return result

  def screenshots(self, indices: list[int]) -> dict[int, np.ndarray | str]:
    """Returns screenshots, or why there are none, by environment."""
    if isinstance(self._env.unwrapped, Screenshots):
      # The first one compiles, and loads textures.
      render = self._env.unwrapped.screenshots
      return self._call(render, indices, starts=True)
    reason = 'environments that step as one vector are not rendered'
    return dict.fromkeys(indices, reason)

  def close_extras(self, **kwargs):
    """Closes the environments."""
    with contextlib.suppress(Exception):
      self._call(self._env.close, seconds=CLOSING)
    self._call.close()

  def _restart(self, error: Exception) -> tuple[Any, dict[str, Any]]:
    """Returns the first observations and infos of new environments."""
    while True:
      failure = Failure.of(error, 'all environments')
      seed = self._restarts.next(0, failure, self._step)
      try:
        if not isinstance(error, Hung):
          with contextlib.suppress(Exception):
            self._call(self._env.close)
        self._env = self._call(self._make, starts=True)
        words = np.random.SeedSequence(seed).generate_state(self.num_envs)
        seeds = [int(word >> 1) for word in words]
        reset = functools.partial(self._env.reset, seed=seeds)
        obs, infos = self._call(reset)
        return obs, {**infos, RESTARTED: np.ones(self.num_envs, bool)}
      except Exception as again:
        error = again
