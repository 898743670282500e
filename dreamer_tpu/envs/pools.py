"""Environments of EnvPool, stepped by its threads."""

import types
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from dreamer_tpu.envs.observations import LOG


class Pool(gymnasium.vector.VectorEnv):
  """N environments of one of EnvPool's tasks.

  EnvPool fixes the seeds of a pool when it is made, so that a reset with seeds
  makes it anew. A step after the last one of an episode starts the next one.

  Args:
    task_id: ID of the task in EnvPool, such as 'CoinrunHard-v0'.
    num_envs: Number N of environments.
    logs: Infos to log, as 'log/VALUE', by their key in EnvPool.
    **options: Options of the task.
  """

  def __init__(
    self,
    task_id: str,
    num_envs: int,
    *,
    logs: Mapping[str, str] = types.MappingProxyType({}),
    **options: Any,
  ):
    import envpool

    self._make = lambda seeds: envpool.make_gymnasium(
      task_id, num_envs=num_envs, seed=seeds, **options
    )
    spec = envpool.make_spec(task_id, **options)
    self.num_envs = num_envs
    self.metadata = {'autoreset_mode': AutoresetMode.NEXT_STEP}
    self.single_observation_space = spec.gymnasium_observation_space
    self.single_action_space = spec.gymnasium_action_space
    self._logs = dict(logs)
    self._pool: Any = None

  def reset(self, *, seed=None, options=None):
    """Starts new episodes; `seed` is None or a list of seeds."""
    del options
    if seed is not None:
      self._pool = self._make(seed)
    obs, info = self._pool.reset()
    return obs, self._logged(info)

  def step(self, actions):
    """Steps all environments."""
    obs, reward, terminated, truncated, info = self._pool.step(actions)
    # Some tasks give a reward for the state after a reset.
    reward = np.where(info['elapsed_step'] == 0, 0, reward)
    return obs, reward, terminated, truncated, self._logged(info)

  def close_extras(self, **kwargs):
    """Ends the threads."""
    self._pool = None

  def _logged(self, info: dict[str, Any]) -> dict[str, np.ndarray]:
    return {f'{LOG}{name}': info[key] for key, name in self._logs.items()}
