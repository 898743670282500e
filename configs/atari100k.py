"""Atari 100k: 400K frames of experience."""

import ml_collections

from configs import presets as presets_lib
from configs.base import base


def get_config(presets: str = '') -> ml_collections.ConfigDict:
  """Returns the suite's configuration with `presets` applied in order."""
  config = base()
  config.task = 'atari_pong'
  config.run.update(steps=110_000, train_ratio=256.0, envs=1)
  config.env.atari.update(
    size=(64, 64), gray=False, sticky=0.0, actions='minimal'
  )
  return presets_lib.apply(config, presets)
