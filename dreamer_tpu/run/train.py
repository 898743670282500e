"""Acting and learning by turns, in one thread: the synchronous mode.

The same seed gives the same run. One step of every environment, then the
updates that are due by `run.train_ratio`; with `run.updates` one update.
"""

from etils import epath
from ml_collections import ConfigDict

from dreamer_tpu.run import start


def main(
  config: ConfigDict, logdir: epath.Path, *, evaluates: bool = False
) -> int:
  """Trains until `run.steps`; starts or goes on, whatever the logdir holds.

  Args:
    config: The merged and validated configuration.
    logdir: Directory of the run.
    evaluates: Whether each report comes with an evaluation.

  Returns:
    Exit code: 0 when done, 75 if it was told to stop and has saved.

  Raises:
    UserError: The configuration, the environment or the logdir do not fit.
  """
  with start.session(config, logdir, evaluates=evaluates) as run:
    while run.going:
      if not run.behind():
        run.act()
      run.turn()
  return run.exit_code
