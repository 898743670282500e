"""Ends the run if the environments exceed a time limit."""

from typing import Any

from ml_collections import ConfigDict

from dreamer_tpu.envs import VectorEnv
from dreamer_tpu.hosts.heartbeat import Heartbeat


class TimeLimited:
  """Wraps a VectorEnv to end a run of several hosts if a call takes too long.

  Args:
    env: Environments.
    heartbeat: Heartbeat of the hosts.
    config: Configuration of the run.
  """

  def __init__(self, env: VectorEnv, heartbeat: Heartbeat, config: ConfigDict):
    self._env = env
    self._heartbeat = heartbeat
    self._limit = config.distributed.env_timeout
    self.num_envs = env.num_envs
    self.obs_space = env.obs_space
    self.act_space = env.act_space
    self.repeat = env.repeat

  def reset(self) -> dict[str, Any]:
    """Resets all environments."""
    with self._heartbeat.watch('a reset of the environments', self._limit):
      return self._env.reset()

  def step(self, actions: dict[str, Any]) -> dict[str, Any]:
    """Steps all environments."""
    with self._heartbeat.watch('a step of the environments', self._limit):
      return self._env.step(actions)

  def close(self) -> None:
    """Closes all environments."""
    self._env.close()
