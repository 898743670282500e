"""Published scores, and the scores of reference that normalize others."""

import collections
import csv
import dataclasses
import functools
import gzip
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from dreamer_tpu.errors import UserError, nearest
from dreamer_tpu.tools.plot.curves import Run, make_run, window_means

_HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Published:
  """Published scores of one task, by window of environment steps.

  Attributes:
    benchmark: 'dmc_proprio', 'dmc_vision', 'atari100k', 'atari57', 'procgen'.
    ends: float [W], last environment step of each window.
    median: float [W], median over seeds of the mean score in the window.
    low: float [W], worst seed.
    high: float [W], best seed.
    seeds: Maximum number of seeds.
  """

  benchmark: str
  ends: np.ndarray
  median: np.ndarray
  low: np.ndarray
  high: np.ndarray
  seeds: int

  @property
  def edges(self) -> np.ndarray:
    """Borders of the windows, float [W + 1]."""
    return np.concatenate([[0.0], self.ends])


@functools.cache
def curves() -> Mapping[tuple[str, str], Published]:
  """Returns the published scores by benchmark and task."""
  rows = collections.defaultdict(list)
  with gzip.open(_HERE / 'published_scores.csv.gz', 'rt') as file:
    for row in csv.DictReader(file):
      rows[row['benchmark'], row['task']].append(row)
  column = lambda group, name: np.array([float(row[name]) for row in group])
  return {
    (benchmark, task): Published(
      benchmark=benchmark,
      ends=column(group, 'environment_steps_up_to'),
      median=column(group, 'median'),
      low=column(group, 'min'),
      high=column(group, 'max'),
      seeds=max(int(row['seeds']) for row in group),
    )
    for (benchmark, task), group in rows.items()
  }


@functools.cache
def runs() -> Sequence[Run]:
  """Returns the published runs by seed, but only the end of each.

  The steps are those that count by the rule of their benchmark, see
  `protocol`; a run that has none of them ends with its last score.
  """
  points = collections.defaultdict(list)
  with gzip.open(_HERE / 'published_ends.csv.gz', 'rt') as file:
    for row in csv.DictReader(file):
      key = row['task'], row['benchmark'], row['seed']
      points[key].append((float(row['step']), float(row['score'])))
  return [make_run('published', *key[:2], p) for key, p in points.items()]


def find(choice: str, run: Run) -> Published | None:
  """Returns the scores to compare a run with.

  Args:
    choice: 'auto', 'none', TASK, or BENCHMARK/TASK.
    run: Run whose benchmark, and with 'auto' task, is preferred.

  Raises:
    UserError: There are no scores of that name.
  """
  table = curves()
  if choice == 'none':
    return None
  if choice == 'auto':
    return table.get((run.benchmark, run.task))
  benchmark, _, task = choice.rpartition('/')
  keys = [k for k in table if k[1] == task and benchmark in ('', k[0])]
  if not keys:
    names = {task for _, task in table} | {'/'.join(key) for key in table}
    near = nearest(choice, sorted(names))
    raise UserError(f"--published={choice} is unknown; did you mean '{near}'?")
  preferred = run.benchmark, task
  return table[preferred if preferred in keys else keys[0]]


def score_at(curve: Published, reach: float) -> float:
  """Returns the published median at a step, NaN beyond the last window."""
  index = np.searchsorted(curve.ends, reach * (1 - 1e-9))
  return float(curve.median[index]) if index < len(curve.ends) else np.nan


def relative_area(runs: Sequence[Run], curve: Published) -> float:
  """Returns the area under the median over seeds relative to the published one.

  Areas are above the lower score of reference, else above zero, over the
  windows that all runs cover.

  Returns:
    A ratio; NaN without a common window.
  """
  means = np.stack([window_means(run, curve.edges) for run in runs])
  common = np.isfinite(means).all(0) & np.isfinite(curve.median)
  floor = _floor(runs[0].task)
  widths = np.diff(curve.edges)[common]
  ours = (np.median(means, 0)[common] - floor) @ widths
  theirs = (curve.median[common] - floor) @ widths
  return float(ours / theirs) if common.any() and theirs > 0 else np.nan


def areas(
  runs: Sequence[Run], others: Sequence[Run], windows: int = 10
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the areas under the curves of two groups of runs of a task.

  The common steps of all runs are split into windows of equal width. An area is
  the mean over windows of the mean score, above the lower score of reference,
  else above zero. Windows in which a run has no episode yet are left out.

  Returns:
    float [runs] and [others]; NaN without a common window.
  """
  members = [*runs, *others]
  edges = np.linspace(0, min(run.reach for run in members), windows + 1)
  means = np.stack([window_means(run, edges) for run in members])
  common = np.isfinite(means).all(0)
  if not common.any():
    return np.full(len(runs), np.nan), np.full(len(others), np.nan)
  found = means[:, common].mean(1) - _floor(members[0].task)
  return found[: len(runs)], found[len(runs) :]


@functools.cache
def reference_scores() -> Mapping[str, tuple[float, float]]:
  """Returns the scores that count as 0 and as 1, by task without underscores.

  Atari: a random policy and a professional game tester, with episodes of at
  most 30 minutes and up to 30 initial no-ops (Mnih et al. 2015; Wang et al.
  2016, 'Dueling Network Architectures for Deep RL'). ProcGen: the constants of
  the hard mode (Cobbe et al. 2020, 'Leveraging Procedural Generation to
  Benchmark Reinforcement Learning').
  """
  with (_HERE / 'reference_scores.csv').open() as file:
    return {
      _compact(row['task']): (float(row['low']), float(row['high']))
      for row in csv.DictReader(file)
    }


def normalized(task: str, score: float) -> float:
  """Returns a score between the two of reference; NaN without them."""
  low, high = reference_scores().get(_compact(task), (np.nan, np.nan))
  return (score - low) / (high - low)


def _floor(task: str) -> float:
  return reference_scores().get(_compact(task), (0.0, 0.0))[0]


def _compact(task: str) -> str:
  return task.replace('_', '')
