"""Any Gymnasium environment; CartPole-v1, a small task, by default."""

import ml_collections

from configs import presets as presets_lib
from configs.base import base


def get_config(presets: str = '') -> ml_collections.ConfigDict:
  """The suite's configuration with `presets` applied in order."""
  config = base()
  config.task = 'gym_CartPole-v1'
  config.run.update(steps=20_000, train_ratio=64.0, envs=4)
  config.replay.size = 1_000_000
  presets_lib.apply(config, 'size1m')
  return presets_lib.apply(config, presets)
