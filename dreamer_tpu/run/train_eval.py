"""Trains an agent as `train` does, and evaluates it with every report."""

from etils import epath
from ml_collections import ConfigDict

from dreamer_tpu.run import train


def main(config: ConfigDict, logdir: epath.Path) -> int:
  """Trains and evaluates; see `train.main`."""
  return train.main(config, logdir, with_eval=True)
