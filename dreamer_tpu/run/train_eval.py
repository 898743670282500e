"""Training as in `train`, with an evaluation at every report."""

from etils import epath
from ml_collections import ConfigDict

from dreamer_tpu.run import train


def main(config: ConfigDict, logdir: epath.Path) -> int:
  """As `train.main`."""
  return train.main(config, logdir, evaluates=True)
