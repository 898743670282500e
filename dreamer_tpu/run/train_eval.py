"""Trains an agent as `train` does, and evaluates it with every report."""

from etils import epath
from ml_collections import ConfigDict

from dreamer_tpu.hosts.preemption import Preemption
from dreamer_tpu.run import train


def main(
  config: ConfigDict, logdir: epath.Path, preemption: Preemption | None = None
) -> int:
  """Trains and evaluates; see `train.main`."""
  return train.main(config, logdir, preemption, with_eval=True)
