"""ProcGen for 100M steps, on all levels in the hard mode."""

import ml_collections

from configs import presets as presets_lib
from configs.base import base


def get_config(presets: str = '') -> ml_collections.ConfigDict:
  """Returns the suite's configuration with `presets` applied in order."""
  config = base()
  config.task = 'procgen_coinrun'
  config.run.update(steps=110_000_000, train_ratio=64.0, envs=16)
  return presets_lib.apply(config, presets)
