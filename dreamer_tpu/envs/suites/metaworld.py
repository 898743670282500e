"""Meta-World: 50 tasks of a robot arm, stepped by EnvPool's threads.

Episodes end after 500 steps, which is not terminal. `log/success` is 1 in the
steps in which the task is solved.
"""

from collections.abc import Iterable
from typing import Any

from dreamer_tpu.envs import registry
from dreamer_tpu.envs.pools import Pool


def make_vector(name: str, num_envs: int, config: Any) -> Pool:
  """Makes N copies of a task.

  Args:
    name: Task, such as 'reach-v3'.
    num_envs: Number N of copies.
    config: Not used.
  """
  del config
  from envpool.mujoco.metaworld.registration import metaworld_task_id

  return Pool(metaworld_task_id(name), num_envs, logs={'success': 'success'})


def names(name: str, config: Any) -> Iterable[str]:
  """Returns the 50 tasks."""
  del name, config
  from envpool.mujoco.metaworld.registration import metaworld_v3_envs

  return metaworld_v3_envs


SUITE = registry.Suite(
  make_vector=make_vector, names=names, package='envpool', extra='metaworld'
)
