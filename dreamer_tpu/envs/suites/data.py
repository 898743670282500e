"""Recorded data whose environment is not at hand.

The spaces of 'data_FOLDER' are those of FOLDER/spaces.json, which an import
writes. The agent can learn from such data, but there is nothing to act in.
"""

import json
from typing import Any

import gymnasium
from etils import epath

from dreamer_tpu import paths
from dreamer_tpu.envs import nested, registry
from dreamer_tpu.envs.conversion import Conversion
from dreamer_tpu.errors import UserError

FILE = 'spaces.json'
_PREFIX = 'data_'
_SPACES = ('observation_space', 'action_space')


class Described(gymnasium.Env):
  """Spaces of an environment that cannot be stepped.

  Args:
    name: Folder of the description.
    config: Options of the suite.
  """

  def __init__(self, name: str, config: Any):
    del config
    file = epath.Path(name) / FILE
    if not file.exists():
      raise UserError(
        f"'{file}' is missing, which describes the environment of recorded "
        'data; python -m dreamer_tpu.tools.data import writes it'
      )
    saved = json.loads(file.read_text())
    self.observation_space, self.action_space = (
      nested.from_json(saved[key]) for key in _SPACES
    )
    self._name = name

  def reset(self, *, seed=None, options=None):
    """Fails: there is no environment."""
    raise UserError(
      f"'{self._name}' only describes an environment; learn offline, with "
      '--config.run.updates=N, or name an environment'
    )

  def step(self, action):
    """Fails: there is no environment."""
    self.reset()


def is_undescribed(task: str) -> bool:
  """Returns whether a task is one of this suite without a description yet."""
  return task.startswith(_PREFIX) and not path(task).exists()


def path(task: str) -> epath.Path:
  """Returns the description of a task of this suite."""
  return epath.Path(task.removeprefix(_PREFIX)) / FILE


def save(task: str, conversion: Conversion) -> None:
  """Writes the description of a task, if it is one of this suite."""
  if is_undescribed(task):
    path(task).parent.mkdir(parents=True, exist_ok=True)
    spaces = conversion.to_json()
    content = json.dumps({key: spaces[key] for key in _SPACES}, indent=2)
    paths.atomic_write(path(task), content)


SUITE = registry.Suite(make=Described, cheap=lambda name, config: True)
