"""Navigation through mazes with bodies that learn to walk."""

import ml_collections

from configs import presets as presets_lib
from configs.base import base


def get_config(presets: str = '') -> ml_collections.ConfigDict:
  """Returns the suite's configuration with `presets` applied in order."""
  config = base()
  config.task = 'loconav_ant_maze_m'
  config.run.update(train_ratio=256.0, envs=16)
  return presets_lib.apply(config, presets)
