"""Vector stepping, with the episode flags that the agent learns from.

Gymnasium returns `terminated` and `truncated`; the agent uses `is_first`,
`is_last` and `is_terminal`. Autoreset is Gymnasium's NEXT_STEP: the step after
the last one of an episode ignores its action and returns the first observation
of the next episode, with reward 0.
"""

import atexit
from collections.abc import Mapping
from typing import Any, Protocol

import gymnasium
import numpy as np
from absl import logging
from gymnasium.vector import AutoresetMode

from dreamer_tpu.envs.conversion import Conversion
from dreamer_tpu.envs.observations import LOG
from dreamer_tpu.envs.restarting import RESTARTED
from dreamer_tpu.errors import UserError, prefixed

Obs = dict[str, np.ndarray]

# Key in the infos of a step: bool [N], the environments for which it is
# terminal, although their episodes go on.
TERMINAL = 'dreamer_tpu/terminal'


class VectorEnv(Protocol):
  """N environments that step together.

  Attributes:
    num_envs: Number N of environments.
    obs_space: Space of each observation key of one environment, without the
      keys of every step (`reward`, `is_*`) and without `log/...`.
    act_space: Space of each action key of one environment.
    repeat: Environment frames per step.
    conversion: Conversion of these spaces from those of the environment.
  """

  num_envs: int
  obs_space: dict[str, gymnasium.Space]
  act_space: dict[str, gymnasium.Space]
  repeat: int
  conversion: Conversion

  @property
  def restarts(self) -> int:
    """Restarts of environments so far."""
    ...

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

  def screenshots(self, indices: list[int]) -> dict[int, np.ndarray]:
    """Returns screenshots of some environments, as they are after a step.

    Args:
      indices: Numbers of the environments.

    Returns:
      uint8 [H, W, 3] by number; empty if the environments were not made for
      rendering, or cannot be rendered.
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


def seen(spaces: Mapping[str, gymnasium.Space]) -> dict[str, gymnasium.Space]:
  """Returns the spaces of observations that are not just logged."""
  return {k: v for k, v in spaces.items() if not k.startswith(LOG)}


class GymVector:
  """Adapts a Gymnasium vector environment to the VectorEnv protocol.

  Args:
    env: A gymnasium.vector.VectorEnv with NEXT_STEP autoreset and the spaces of
      its attribute `conversion`. Closed with this object.
    task: Name of the task, for messages.
    seed: Seed of the first episodes; see `seeds`.
    repeat: Environment frames per step.
    renders: Whether the environments were made for rendering.
  """

  def __init__(
    self,
    env: Any,
    task: str,
    seed: int,
    repeat: int = 1,
    *,
    renders: bool = False,
  ):
    mode = env.metadata.get('autoreset_mode')
    if mode != AutoresetMode.NEXT_STEP:
      env.close()
      raise UserError(
        f'task {task}: the vector environment has {mode}, which drops the last '
        'observations of episodes or stops; make it with '
        'autoreset_mode=AutoresetMode.NEXT_STEP'
      )
    self.num_envs = env.num_envs
    self.repeat = repeat
    self.obs_space = seen(env.single_observation_space.spaces)
    self.act_space = dict(env.single_action_space.spaces.items())
    self.conversion: Conversion = env.conversion
    self._env = env
    self._task = task
    self._seeds: list[int] | None = seeds(seed, env.num_envs)
    self._steps = 0
    self._last = np.zeros(env.num_envs, bool)
    self._log_keys: set[str] = set()
    self._renders = renders
    self._closed = False
    # Workers ignore SIGTERM, so multiprocessing would wait for them forever.
    atexit.register(self.close)

  @property
  def restarts(self) -> int:
    """Restarts of environments so far."""
    return self._env.restarts

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

  def screenshots(self, indices: list[int]) -> dict[int, np.ndarray]:
    """Returns screenshots of some environments; says once if there are none."""
    if not self._renders or not indices:
      return {}
    screenshots = self._call('screenshots', indices)
    for i, reason in screenshots.items():
      if isinstance(reason, str):
        logging.warning(
          'Task %s, environment %d: there is no video, as %s '
          '(run.eval_video=False asks for none).',
          self._task,
          i,
          reason,
        )
        self._renders = False
        return {}
    return screenshots

  def close(self) -> None:
    """Ends the environments and their processes."""
    if self._closed:
      return
    self._closed = True
    atexit.unregister(self.close)
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
      self.close()
      where = method if method == 'reset' else f'step {self._steps:,}'
      raise prefixed(f'task {self._task}, {where}: ', error) from error

  def _result(self, obs, info, reward, last, terminal) -> Obs:
    first, self._last = self._last, last.copy()
    first |= info.get(RESTARTED, False)
    return {
      **obs,
      **self._logs(info),
      'reward': np.asarray(reward, np.float32),
      'is_first': first,
      'is_last': last.copy(),
      'is_terminal': terminal | info.get(TERMINAL, False),
    }

  def _logs(self, info: dict[str, Any]) -> Obs:
    """Returns the log scalars of the infos; a key stays once it was seen."""
    self._log_keys.update(k for k in info if k.startswith(LOG))
    result = {}
    for key in self._log_keys:
      values = np.full(self.num_envs, np.nan, np.float32)
      if key in info:
        given = info.get(f'_{key}', np.ones(self.num_envs, bool))
        values[given] = info[key][given]
      result[key] = values
    return result
