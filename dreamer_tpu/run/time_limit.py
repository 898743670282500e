"""Environments that must not keep the other hosts waiting."""

from typing import Any, Self

from ml_collections import ConfigDict

from dreamer_tpu.envs import VectorEnv
from dreamer_tpu.hosts.heartbeat import Pod


class Watched:
  """A VectorEnv, whose calls end the run if they take too long.

  A context manager that closes it. With one host it may take its time.

  Args:
    env: The environments.
    pod: The hosts of the run.
    config: Of the run.
  """

  def __init__(self, env: VectorEnv, pod: Pod, config: ConfigDict):
    self._env = env
    self._pod = pod
    self._limit = config.distributed.env_timeout
    self.num_envs = env.num_envs
    self.obs_space = env.obs_space
    self.act_space = env.act_space
    self.repeat = env.repeat

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc: object) -> None:
    self.close()

  def reset(self) -> dict[str, Any]:
    with self._pod.watch('reset of its environments', self._limit):
      return self._env.reset()

  def step(self, actions: dict[str, Any]) -> dict[str, Any]:
    with self._pod.watch('step of its environments', self._limit):
      return self._env.step(actions)

  def close(self) -> None:
    self._env.close()
