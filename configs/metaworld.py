"""Meta-World from proprioception for 1M steps, with a small model."""

import ml_collections

from configs import presets as presets_lib
from configs.base import base


def get_config(presets: str = '') -> ml_collections.ConfigDict:
  """Returns the suite's configuration with `presets` applied in order."""
  config = base()
  config.task = 'metaworld_reach-v3'
  config.run.update(steps=1_100_000, train_ratio=1024.0, envs=16)
  presets_lib.apply(config, 'size1m')
  return presets_lib.apply(config, presets)
