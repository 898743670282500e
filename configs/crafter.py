"""Crafter with rewards for 1M steps."""

import ml_collections

from configs import presets as presets_lib
from configs.base import base


def get_config(presets: str = '') -> ml_collections.ConfigDict:
  """Returns the suite's configuration with `presets` applied in order."""
  config = base()
  config.task = 'crafter_reward'
  config.run.update(steps=1_100_000, train_ratio=512.0, envs=1)
  return presets_lib.apply(config, presets)
