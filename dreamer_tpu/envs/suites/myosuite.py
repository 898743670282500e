"""MyoSuite: muscles that move a body, stepped by EnvPool's threads.

Time limits are not terminal. `log/solved` is 1 in the steps in which the task
is solved. EnvPool draws targets only for the tasks 'MyoHand...Random'; all
other episodes start alike, whatever their seeds.
"""

from collections.abc import Iterable
from typing import Any

from absl import logging

from dreamer_tpu.envs import registry
from dreamer_tpu.envs.pools import Pool


def make_vector(name: str, num_envs: int, config: Any) -> Pool:
  """Makes N copies of a task.

  Args:
    name: Task, such as 'myoElbowPose1D6MFixed-v0'.
    num_envs: Number N of copies.
    config: Not used.
  """
  del config
  if 'Random' in name and not name.startswith('MyoHand'):
    logging.warning('EnvPool starts all episodes of %s alike.', name)
  return Pool(f'MyoSuite/{name}', num_envs, logs={'solved': 'solved'})


def names(name: str, config: Any) -> Iterable[str]:
  """Returns the tasks of EnvPool."""
  del name, config
  from envpool.mujoco.myosuite.registration import myosuite_task_ids

  return myosuite_task_ids


SUITE = registry.Suite(
  make_vector=make_vector, names=names, package='envpool', extra='myosuite'
)
