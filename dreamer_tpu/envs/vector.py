"""Stepping many environments: the one place where episodes get their shape.

Gymnasium tells `terminated` and `truncated`; the agent learns from `is_first`,
`is_last` and `is_terminal`. The autoreset is Gymnasium's NEXT_STEP: the step
after the last of an episode ignores its action and returns the first
observation of the next, with reward 0.
"""

import atexit
from collections.abc import Callable
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from dreamer_tpu.envs import workers
from dreamer_tpu.envs.conversion import LOG
from dreamer_tpu.errors import UserError

Obs = dict[str, np.ndarray]


class VectorEnv(Protocol):
  """A number of environments that step together.

  Attributes:
    num_envs: how many, N.
    obs_space: the space of each observation key, of one environment. Holds
      neither the keys that every step has (`reward`, `is_*`) nor `log/...`.
    act_space: the space of each action key, of one environment.
    repeat: environment frames per step.
  """

  num_envs: int
  obs_space: dict[str, gymnasium.Space]
  act_space: dict[str, gymnasium.Space]
  repeat: int

  def reset(self) -> Obs:
    """Starts all episodes anew; arrays as in `step`."""
    ...

  def step(self, actions: dict[str, np.ndarray]) -> Obs:
    """Steps all environments.

    Args:
      actions: for each action key an array [N, ...].

    Returns:
      For each observation key an array [N, ...]; `reward` float32 [N];
      `is_first`, `is_last`, `is_terminal` bool [N]; `log/NAME` float32 [N], NaN
      where an environment did not report it, or uint8 [N, H, W, C]. The arrays
      are the caller's: nothing writes to them later.
    """
    ...

  def close(self) -> None:
    """Ends the environments and their processes; may be called twice."""
    ...


def seeds(seed: int, num_envs: int) -> list[int]:
  """Seeds of the environments: the words of SeedSequence(seed), 31 bits each.

  The seed of environment i does not depend on how many environments there
  are, so different roles (training, evaluation, other hosts, a resumed run)
  need different seeds to see different episodes.
  """
  words = np.random.SeedSequence(seed).generate_state(num_envs)
  return [int(word >> 1) for word in words]


def serial(makers: list[Callable[[], gymnasium.Env]]) -> SyncVectorEnv:
  """Environments that step one after another in this process."""
  return SyncVectorEnv(makers)


class GymVector:
  """A Gymnasium vector environment of normalised environments, as VectorEnv."""

  def __init__(
    self,
    env: Any,
    task: str,
    seed: int,
    repeat: int = 1,
  ):
    """Takes over `env`, whose spaces are Dicts as `wrappers.wrap` makes them.

    Args:
      env: a gymnasium.vector.VectorEnv with NEXT_STEP autoreset.
      task: its name, for messages.
      seed: of the first episodes; see `seeds`.
      repeat: environment frames per step.
    """
    if env.metadata['autoreset_mode'] != AutoresetMode.NEXT_STEP:
      raise ValueError(f'task {task}: autoreset has to be NEXT_STEP')
    self.num_envs = env.num_envs
    self.repeat = repeat
    obs_space = dict(env.single_observation_space.spaces.items())
    self.obs_space = {
      k: v for k, v in obs_space.items() if not k.startswith(LOG)
    }
    self.act_space = dict(env.single_action_space.spaces.items())
    self._env = env
    self._task = task
    self._seeds: list[int] | None = seeds(seed, env.num_envs)
    self._last = np.zeros(env.num_envs, bool)
    self._reported: set[str] = set()
    self._closed = False
    # Workers ignore SIGTERM, so multiprocessing would wait for them for ever.
    atexit.register(self.close)

  def reset(self) -> Obs:
    obs, info = self._guard(self._env.reset, seed=self._seeds)
    self._seeds = None  # A second reset goes on with the same generators.
    none = np.zeros(self.num_envs, bool)
    return self._result(obs, info, none, ~none, none, none)

  def step(self, actions: dict[str, np.ndarray]) -> Obs:
    actions = {k: self._action(k, actions) for k in self.act_space}
    results = self._guard(self._env.step, actions)
    obs, reward, terminated, truncated, info = results
    first, last = self._last, terminated | truncated
    return self._result(obs, info, reward, first, last, terminated)

  def close(self) -> None:
    if self._closed:
      return
    self._closed = True
    atexit.unregister(self.close)
    if isinstance(self._env, AsyncVectorEnv):
      workers.stop(self._env)
    else:
      self._env.close()

  def _action(self, key: str, actions: dict[str, np.ndarray]) -> np.ndarray:
    space = self.act_space[key]
    value = np.asarray(actions[key], space.dtype)
    if value.shape != (self.num_envs, *space.shape):
      raise ValueError(
        f'action {key!r} has shape {value.shape}, expected '
        f'{(self.num_envs, *space.shape)}'
      )
    if value.dtype.kind == 'f' and not np.isfinite(value).all():
      raise ValueError(f'action {key!r} is not finite')
    return value

  def _guard(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Calls the environments; closes them on failure and says which failed."""
    try:
      return function(*args, **kwargs)
    except UserError:
      self.close()
      raise
    except Exception as error:
      text = f'task {self._task}: {type(error).__name__}: {error}'
      if isinstance(self._env, AsyncVectorEnv):
        text = f'task {self._task}: {error}'
        if isinstance(error, (EOFError, OSError)):
          died = workers.dead(self._env) or 'a worker'
          text = f'task {self._task}: {died} died: out of memory, or a crash'
      self.close()
      raise RuntimeError(text) from error

  def _result(
    self,
    obs: Obs,
    info: dict[str, Any],
    reward: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    terminal: np.ndarray,
  ) -> Obs:
    self._last = last.copy()
    return {
      **obs,
      **self._logged(info),
      'reward': np.asarray(reward, np.float32),
      'is_first': first.copy(),
      'is_last': last.copy(),
      'is_terminal': terminal.copy(),
    }

  def _logged(self, info: dict[str, Any]) -> Obs:
    """Log scalars from the infos; a key once seen is in every later step."""
    self._reported.update(k for k in info if k.startswith(LOG))
    result = {}
    for key in self._reported:
      values = np.full(self.num_envs, np.nan, np.float32)
      if key in info:
        given = info[f'_{key}']
        values[given] = info[key][given]
      result[key] = values
    return result
