"""Recorded data whose environment is not at hand; see tools/data."""

import ml_collections

from configs import presets as presets_lib
from configs.base import base


def get_config(presets: str = '') -> ml_collections.ConfigDict:
  """Returns the suite's configuration with `presets` applied in order."""
  config = base()
  config.task = 'data_.'
  config.run.update(envs=1)
  config.env.restarts = 0
  return presets_lib.apply(config, presets)
