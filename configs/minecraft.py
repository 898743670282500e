"""Minecraft: a diamond from nothing."""

import ml_collections

from configs import presets as presets_lib
from configs.base import base


def get_config(presets: str = '') -> ml_collections.ConfigDict:
  """Returns the suite's configuration with `presets` applied in order."""
  config = base()
  config.task = 'minecraft_diamond'
  config.run.update(train_ratio=32.0, envs=16)
  config.env.timeout = 600.0  # The first reset starts the game.
  return presets_lib.apply(config, presets)
