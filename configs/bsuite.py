"""BSuite with its published train ratio; mnist/0 is a bandit on images."""

import ml_collections

from configs import presets as presets_lib
from configs.base import base


def get_config(presets: str = '') -> ml_collections.ConfigDict:
  """Returns the suite's configuration with `presets` applied in order."""
  config = base()
  config.task = 'bsuite_mnist/0'
  config.run.update(train_ratio=1024.0, envs=1)
  return presets_lib.apply(config, presets)
