"""Gymnax's environments, stepped on the device; the default is CartPole-v1."""

import ml_collections

from configs import presets as presets_lib
from configs.base import base


def get_config(presets: str = '') -> ml_collections.ConfigDict:
  """Returns the suite's configuration with `presets` applied in order."""
  config = base()
  config.task = 'gymnax_CartPole-v1'
  config.run.update(steps=20_000, train_ratio=32.0, envs=8)
  config.env.unroll = 16
  # As for Gymnasium's environments.
  config.batch_size, config.batch_length = 8, 32
  config.agent.opt.update(lr=3e-4, warmup=200)
  config.replay.size = 1_000_000
  presets_lib.apply(config, 'size1m')
  return presets_lib.apply(config, presets)
