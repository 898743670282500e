"""Vector stepping, with the episode flags that the agent learns from.

Gymnasium returns `terminated` and `truncated`; the agent uses `is_first`,
`is_last` and `is_terminal`. Autoreset is Gymnasium's NEXT_STEP: the step after
the last one of an episode ignores its action and returns the first observation
of the next episode, with reward 0.
"""

import atexit
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from dreamer_tpu.envs import workers
from dreamer_tpu.envs.conversion import LOG
from dreamer_tpu.errors import UserError

Obs = dict[str, np.ndarray]


class VectorEnv(Protocol):
  """N environments that step together.

  Attributes:
    num_envs: Number N of environments.
    obs_space: Space of each observation key of one environment, without the
      keys of every step (`reward`, `is_*`) and without `log/...`.
    act_space: Space of each action key of one environment.
    repeat: Environment frames per step.
  """

  num_envs: int
  obs_space: dict[str, gymnasium.Space]
  act_space: dict[str, gymnasium.Space]
  repeat: int

  def reset(self) -> Obs:
    """Starts new episodes; returns arrays as `step` does."""
    ...

  def step(self, actions: dict[str, np.ndarray]) -> Obs:
    """Steps all environments.

    Args:
      actions: Array [N, ...] for each action key.

    Returns:
      An array [N, ...] for each observation key; `reward` float32 [N];
      `is_first`, `is_last`, `is_terminal` bool [N]; `log/NAME` float32 [N], NaN
      where an environment did not report it, or uint8 [N, H, W, C]. The arrays
      are not reused by later steps.
    """
    ...

  def close(self) -> None:
    """Ends the environments and their processes; may be called twice."""
    ...


def seeds(seed: int, num_envs: int) -> list[int]:
  """Returns the 31-bit seeds of the environments, words of SeedSequence(seed).

  The seed of environment i does not depend on the number of environments.
  Training, evaluation, other hosts and resumed runs thus need different seeds
  to see different episodes.
  """
  words = np.random.SeedSequence(seed).generate_state(num_envs)
  return [int(word >> 1) for word in words]


class GymVector:
  """Adapts a Gymnasium vector environment to the VectorEnv protocol.

  Args:
    env: A gymnasium.vector.VectorEnv with NEXT_STEP autoreset, whose spaces are
      Dicts as `wrappers.wrap` makes them. Closed with this object.
    task: Name of the task, for messages.
    seed: Seed of the first episodes; see `seeds`.
    repeat: Environment frames per step.
  """

  def __init__(self, env: Any, task: str, seed: int, repeat: int = 1):
    if env.metadata['autoreset_mode'] != AutoresetMode.NEXT_STEP:
      raise ValueError(f'task {task}: autoreset must be NEXT_STEP')
    self.num_envs = env.num_envs
    self.repeat = repeat
    self.obs_space = {
      key: space
      for key, space in env.single_observation_space.spaces.items()
      if not key.startswith(LOG)
    }
    self.act_space = dict(env.single_action_space.spaces.items())
    self._env = env
    self._task = task
    self._seeds: list[int] | None = seeds(seed, env.num_envs)
    self._steps = 0
    self._last = np.zeros(env.num_envs, bool)
    self._log_keys: set[str] = set()
    self._closed = False
    # Workers ignore SIGTERM, so multiprocessing would wait for them forever.
    atexit.register(self.close)

  def reset(self) -> Obs:
    """Starts new episodes; the first reset sets the seeds."""
    obs, info = self._call('reset', seed=self._seeds)
    self._seeds = None
    none = np.zeros(self.num_envs, bool)
    self._last = ~none
    return self._result(obs, info, none, none, none)

  def step(self, actions: dict[str, np.ndarray]) -> Obs:
    """Steps all environments."""
    self._steps += 1
    actions = {k: self._action(k, actions) for k in self.act_space}
    obs, reward, terminal, truncated, info = self._call('step', actions)
    return self._result(obs, info, reward, terminal | truncated, terminal)

  def close(self) -> None:
    """Ends the environments and their processes."""
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
    expected = (self.num_envs, *space.shape)
    if value.shape != expected:
      raise ValueError(
        f'action {key!r} has shape {value.shape}, expected {expected}'
      )
    if value.dtype.kind == 'f' and not np.isfinite(value).all():
      raise ValueError(f'action {key!r} is not finite')
    return value

  def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
    """Calls the environments; on failure closes them and raises one line."""
    try:
      return getattr(self._env, method)(*args, **kwargs)
    except Exception as error:
      text = str(error)
      pipes = isinstance(self._env, AsyncVectorEnv)
      if pipes and isinstance(error, (EOFError, OSError)):
        died = workers.dead(self._env) or 'a worker'
        text = f'{died} died: out of memory, or a crash'
      elif not isinstance(error, (UserError, RuntimeError)):
        text = f'{type(error).__name__}: {text}'
      self.close()
      kind = UserError if isinstance(error, UserError) else RuntimeError
      where = method if method == 'reset' else f'step {self._steps:,}'
      raise kind(f'task {self._task}, {where}: {text}') from error

  def _result(self, obs, info, reward, last, terminal) -> Obs:
    first, self._last = self._last, last.copy()
    return {
      **obs,
      **self._logs(info),
      'reward': np.asarray(reward, np.float32),
      'is_first': first,
      'is_last': last.copy(),
      'is_terminal': terminal.copy(),
    }

  def _logs(self, info: dict[str, Any]) -> Obs:
    """Returns the log scalars of the infos; a key stays once it was seen."""
    self._log_keys.update(k for k in info if k.startswith(LOG))
    result = {}
    for key in self._log_keys:
      values = np.full(self.num_envs, np.nan, np.float32)
      if key in info:
        given = info[f'_{key}']
        values[given] = info[key][given]
      result[key] = values
    return result
