"""BSuite: 23 small experiments, each of which tests one ability.

Tasks are named bsuite_EXPERIMENT/SETTING, such as bsuite_catch/0. The setting
is that of bsuite's sweep; where it names no seed, the run's seed is used.
"""

import os
from collections.abc import Iterable
from typing import Any

import gymnasium

from dreamer_tpu.envs import registry
from dreamer_tpu.envs.from_dm import FromDM
from dreamer_tpu.errors import UserError


def make(
  name: str, config: Any, *, index: int = 0, role: str = 'train'
) -> gymnasium.Env:
  """Makes one environment.

  Args:
    name: EXPERIMENT/SETTING.
    config: folder, in which bsuite logs regret to files, '' for none.
    index: Number of the environment.
    role: Its purpose, 'train' or 'eval'.

  Raises:
    UserError: The data of an experiment cannot be downloaded.
  """
  folder = config.folder and os.path.join(config.folder, f'{role}{index}')

  def reseed(env: Any, seed: int) -> Any:
    del env
    made = _load(name, seed)
    return _logged(made, name, folder) if folder else made

  return FromDM(_load(name, None), reseed=reseed)


def _load(name: str, seed: int | None) -> Any:
  """Returns the environment of an experiment, with a seed if it has none."""
  from bsuite import bsuite, sweep

  experiment, _ = bsuite.unpack_bsuite_id(name)
  function = bsuite.EXPERIMENT_NAME_TO_ENVIRONMENT[experiment]
  setting = dict(sweep.SETTINGS[name])
  if setting.get('seed') is None:
    setting |= registry.accepted(function, {'seed': seed})
  try:
    env = function(**setting)
  except (OSError, EOFError) as error:
    raise UserError(
      f'the data of MNIST cannot be read ({error}): bsuite keeps the four '
      '*-ubyte.gz files in /tmp/mnist and downloads those that are missing'
    ) from error
  if experiment == 'deep_sea_stochastic':  # Its function takes no seed.
    env._rng.seed(seed)
  return env


def _logged(env: Any, name: str, folder: str) -> Any:
  """Wraps an environment so that it logs to a new file.

  The counts start at 0, so that each part of a resumed run has its own folder.
  """
  from bsuite.logging import csv_logging

  part, free = 1, folder
  while os.path.exists(free):
    part += 1
    free = f'{folder}.{part}'
  return csv_logging.wrap_environment(env, name, free)


def names(name: str, config: Any) -> Iterable[str]:
  """Returns all settings of all experiments."""
  del name, config
  from bsuite import sweep

  return sweep.SWEEP


def cheap(name: str, config: Any) -> bool:
  """Returns True: all experiments are small."""
  del name, config
  return True


SUITE = registry.Suite(
  make=make, names=names, cheap=cheap, package='bsuite', extra='bsuite'
)
