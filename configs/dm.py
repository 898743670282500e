"""Any environment of dm_env; the default is a small one of dm_control."""

import ml_collections

from configs import presets as presets_lib
from configs.base import base


def get_config(presets: str = '') -> ml_collections.ConfigDict:
  """Returns the suite's configuration with `presets` applied in order."""
  config = base()
  config.task = 'dm_dm_control.suite.cartpole:balance'
  config.run.update(steps=110_000, train_ratio=512.0, envs=4)
  presets_lib.apply(config, 'size1m')
  return presets_lib.apply(config, presets)
