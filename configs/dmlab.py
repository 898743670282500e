"""DMLab-30 for 100M frames."""

import ml_collections

from configs import presets as presets_lib
from configs.base import base


def get_config(presets: str = '') -> ml_collections.ConfigDict:
  """Returns the suite's configuration with `presets` applied in order."""
  config = base()
  config.task = 'dmlab_explore_goal_locations_small'
  config.run.update(steps=26_000_000, train_ratio=32.0, envs=16)
  return presets_lib.apply(config, presets)
