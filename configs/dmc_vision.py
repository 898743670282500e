"""DeepMind Control from 64x64 pixels for 1M steps."""

import ml_collections

from configs import presets as presets_lib
from configs.base import base


def get_config(presets: str = '') -> ml_collections.ConfigDict:
  """Returns the suite's configuration with `presets` applied in order."""
  config = base()
  config.task = 'dmc_walker_walk'
  config.run.update(steps=1_100_000, train_ratio=256.0, envs=16)
  config.env.dmc.update(image=True, proprio=False)
  return presets_lib.apply(config, presets)
