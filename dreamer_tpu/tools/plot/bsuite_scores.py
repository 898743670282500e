"""Scores of BSuite, computed by bsuite itself from the files that it logs."""

import dataclasses
from collections.abc import Sequence

from etils import epath

from dreamer_tpu.errors import UserError
from dreamer_tpu.tools.plot.curves import Run, read_config


@dataclasses.dataclass(frozen=True)
class Score:
  """Score of one agent.

  Attributes:
    experiments: Scores between 0 and 1, by experiment.
    unfinished: Names of those that have not played all their episodes.
    tags: Mean scores by ability, such as 'memory'.
  """

  experiments: dict[str, float]
  unfinished: list[str]
  tags: dict[str, float]


def score(runs: Sequence[Run]) -> Score | None:
  """Returns the score of the runs of one agent.

  It reads what the first environment of each run has logged in
  `env.bsuite.folder`, before any resume.

  Args:
    runs: Runs of BSuite's tasks.

  Returns:
    None if none of the runs has logged.

  Raises:
    UserError: The package bsuite is missing.
  """
  folders = [folder for run in runs if (folder := _folder(run))]
  if not folders:
    return None
  try:
    import pandas
    from bsuite.experiments import summary_analysis
    from bsuite.logging import csv_load
  except ImportError as e:
    raise UserError(
      f"scores of BSuite need {e.name}: pip install '.[bsuite]'"
    ) from e
  loaded = [csv_load.load_one_result_set(str(folder)) for folder in folders]
  table = summary_analysis.bsuite_score(pandas.concat(loaded))
  tags = summary_analysis.ave_score_by_tag(table, [])
  return Score(
    dict(zip(table['bsuite_env'], table['score'].astype(float), strict=True)),
    list(table['bsuite_env'][~table['finished'].astype(bool)]),
    dict(zip(tags['tag'], tags['score'].astype(float), strict=True)),
  )


def _folder(run: Run) -> epath.Path | None:
  config = read_config(run.path) if run.path else {}
  folder = config.get('env', {}).get('bsuite', {}).get('folder', '')
  path = epath.Path(folder) / 'train0'
  return path if folder and any(path.glob('*.csv')) else None
