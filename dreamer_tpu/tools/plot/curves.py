"""Loads scores of runs and published scores and compares them."""

import collections
import csv
import dataclasses
import functools
import gzip
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.errors import UserError, nearest
from dreamer_tpu.metrics import jsonl

_HERE = pathlib.Path(__file__).parent
# Runs of at most this many frames are compared with Atari 100k.
_ATARI100K_FRAMES = 1_000_000


@dataclasses.dataclass(frozen=True)
class Run:
  """Episodes of one log directory.

  Attributes:
    label: Label given by the user, or ''.
    task: Task name, such as 'atari_pong'.
    benchmark: Benchmark of the published scores to compare with, or ''.
    steps: float [N], environment steps (agent steps x action repeat) at the
      end of each episode, ascending.
    scores: float [N], sum of rewards of each episode.
    reach: Environment steps of the run so far.
  """

  label: str
  task: str
  benchmark: str
  steps: np.ndarray
  scores: np.ndarray
  reach: float


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


def find_runs(
  names: Iterable[str], mode: str = 'train', repeat: float | None = None
) -> list[Run]:
  """Loads log directories.

  Args:
    names: Log directories or folders of them, optionally as LABEL=PATH.
    mode: Kind of episodes, 'train' or 'eval'.
    repeat: Environment steps per agent step; read from the run by default.

  Raises:
    UserError: A directory is missing or holds no scores.
  """
  runs = []
  for name in names:
    label, path = _split_label(name)
    if not path.is_dir():
      raise UserError(f'Log directory {str(path)!r} does not exist.')
    folders = [path] if _is_run(path) else _runs_below(path)
    if not folders:
      raise UserError(
        f'{str(path)!r} is not a log directory: it has neither scores.jsonl '
        'nor metrics.jsonl.'
      )
    runs += [load_run(folder, label, mode, repeat) for folder in folders]
  return runs


def load_run(
  path: epath.Path,
  label: str = '',
  mode: str = 'train',
  repeat: float | None = None,
) -> Run:
  """Loads one log directory.

  Raises:
    UserError: There is no finished episode of that mode.
  """
  config = read_config(path)
  metrics = _read(path / 'metrics.jsonl')
  scored = _read(path / 'scores.jsonl')
  pairs = [
    (line['step'], line['episode/score'])
    for line in scored
    if line.get('mode', 'train') == mode
  ]
  if not pairs:
    name = 'episode/score' if mode == 'train' else f'{mode}/episode/score'
    pairs = [(line['step'], line[name]) for line in metrics if name in line]
  pairs = [pair for pair in pairs if pair[1] is not None]
  if not pairs:
    others = sorted({line.get('mode', 'train') for line in scored})
    hint = f' Use --mode={others[0]} for its other episodes.' if others else ''
    raise UserError(
      f'{str(path)!r} holds no score of a finished {mode} episode yet.{hint}'
    )
  task = config.get('task', path.name)
  if repeat is None:
    repeat = _repeat(config, task, metrics)
  steps, scores = np.array(sorted(pairs, key=lambda pair: pair[0]), float).T
  last = max(steps[-1], metrics[-1]['step'] if metrics else 0)
  benchmark = _benchmark(config, task, repeat)
  return Run(label, task, benchmark, steps * repeat, scores, last * repeat)


@functools.cache
def published() -> Mapping[tuple[str, str], Published]:
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


def find_published(choice: str, run: Run) -> Published | None:
  """Returns the scores to compare a run with.

  Args:
    choice: 'auto', 'none', TASK, or BENCHMARK/TASK.
    run: Run whose benchmark, and with 'auto' task, is preferred.

  Raises:
    UserError: There are no scores of that name.
  """
  table = published()
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


def read_config(path: epath.Path) -> dict[str, Any]:
  """Returns the configuration of a log directory, {} if there is none."""
  path = path / 'config.json'
  if not path.exists():
    return {}
  try:
    return json.loads(path.read_text())
  except ValueError as e:
    raise UserError(f'{str(path)!r} is not valid JSON: {e}.') from e


def window_means(run: Run, edges: np.ndarray) -> np.ndarray:
  """Averages the episodes of a run in windows (start, end] of steps.

  Args:
    run: A run.
    edges: float [W + 1], ascending.

  Returns:
    float [W]. A window without an episode repeats the value before it. NaN
    before the first episode and beyond the reach of the run.
  """
  bins = np.searchsorted(edges, run.steps, side='left') - 1
  inside = (bins >= 0) & (bins < len(edges) - 1)
  bins, scores = bins[inside], run.scores[inside]
  sums = np.bincount(bins, scores, len(edges) - 1)
  counts = np.bincount(bins, minlength=len(edges) - 1)
  means = np.full(len(edges) - 1, np.nan)
  np.divide(sums, counts, out=means, where=counts > 0)
  for index in range(1, len(means)):
    if not counts[index]:
      means[index] = means[index - 1]
  means[edges[1:] > run.reach * (1 + 1e-9)] = np.nan
  return means


def relative_area(runs: Sequence[Run], curve: Published) -> float:
  """Returns the area under the median over seeds relative to the published one.

  Areas are above the score of a random policy on Atari, else above zero, over
  the windows that all runs cover.

  Returns:
    A ratio; NaN without a common window.
  """
  means = np.stack([window_means(run, curve.edges) for run in runs])
  common = np.isfinite(means).all(0) & np.isfinite(curve.median)
  floor = atari_scores().get(_game(runs[0].task), (0.0, 0.0))[0]
  widths = np.diff(curve.edges)[common]
  ours = (np.median(means, 0)[common] - floor) @ widths
  theirs = (curve.median[common] - floor) @ widths
  return float(ours / theirs) if common.any() and theirs > 0 else np.nan


def last_score(run: Run) -> float:
  """Returns the mean of the last tenth of the steps, at least ten episodes."""
  late = int((run.steps > 0.9 * run.reach).sum())
  return float(run.scores[-max(late, 10) :].mean())


def published_score(curve: Published, reach: float) -> float:
  """Returns the published median at a step, NaN beyond the last window."""
  index = np.searchsorted(curve.ends, reach * (1 - 1e-9))
  return float(curve.median[index]) if index < len(curve.ends) else np.nan


@functools.cache
def atari_scores() -> Mapping[str, tuple[float, float]]:
  """Returns (random, human) scores of 57 games, by name without underscores.

  Most publications normalize with these: episodes of at most 30 minutes with
  up to 30 initial no-ops, and a professional game tester (Mnih et al. 2015;
  Wang et al. 2016, 'Dueling Network Architectures for Deep RL').
  """
  with (_HERE / 'atari_scores.csv').open() as file:
    return {
      _game(row['game']): (float(row['random']), float(row['human']))
      for row in csv.DictReader(file)
    }


def human_normalized(task: str, score: float) -> float:
  """Returns a score between random (0) and human (1); NaN if not Atari."""
  if not task.startswith('atari_') or _game(task) not in atari_scores():
    return np.nan
  random, human = atari_scores()[_game(task)]
  return (score - random) / (human - random)


def _split_label(name: str) -> tuple[str, epath.Path]:
  label, separator, path = name.partition('=')
  if separator and '/' not in label:
    return label, epath.Path(path)
  return '', epath.Path(name)


def _is_run(path: epath.Path) -> bool:
  return any(
    (path / name).exists() for name in ('scores.jsonl', 'metrics.jsonl')
  )


def _runs_below(path: epath.Path) -> list[epath.Path]:
  return sorted(x for x in path.iterdir() if x.is_dir() and _is_run(x))


def _read(path: epath.Path) -> list[dict[str, Any]]:
  return [x for x in jsonl.read(path) if 'step' in x] if path.exists() else []


def _repeat(
  config: dict[str, Any], task: str, metrics: list[dict[str, Any]]
) -> float:
  if repeat := _env(config, task).get('repeat'):
    return repeat
  for line in reversed(metrics):
    if line['step'] and line.get('frames'):
      return line['frames'] / line['step']
  return 1


def _benchmark(config: dict[str, Any], task: str, repeat: float) -> str:
  suite = task.partition('_')[0]
  if suite == 'dmc':
    image = _env(config, task).get('image', False)
    return 'dmc_vision' if image else 'dmc_proprio'
  if suite == 'atari':
    frames = config.get('run', {}).get('steps', np.inf) * repeat
    return 'atari100k' if frames <= _ATARI100K_FRAMES else 'atari57'
  return suite


def _env(config: dict[str, Any], task: str) -> dict[str, Any]:
  return config.get('env', {}).get(task.partition('_')[0], {})


def _game(task: str) -> str:
  return task.removeprefix('atari_').replace('_', '')
