"""Loads scores of runs."""

import csv
import dataclasses
import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics import jsonl

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
    maxima: float [N] each, maxima over each episode of what the environment
      logs, by name, such as 'achievement_place_table'; NaN if unknown.
    path: Its log directory, None if it was not loaded from one.
  """

  label: str
  task: str
  benchmark: str
  steps: np.ndarray
  scores: np.ndarray
  reach: float
  maxima: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  path: epath.Path | None = None


Groups = dict[tuple[str, str, str], list[Run]]


def find_runs(
  names: Iterable[str], mode: str = 'train', repeat: float | None = None
) -> list[Run]:
  """Loads log directories and files of scores.

  Args:
    names: Log directories, folders of them, or files of scores (see
      `load_scores` and `load_table`), optionally as LABEL=PATH.
    mode: Kind of episodes of log directories, 'train' or 'eval'.
    repeat: Environment steps per agent step; read from the run by default.

  Raises:
    UserError: A path is missing or holds no scores.
  """
  runs = []
  for name in names:
    label, path = _split_label(name)
    if path.is_file():
      if path.suffix == '.csv':
        runs += load_table(path, label, repeat or 1)
      else:
        runs += load_scores(path, label)
      continue
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
  episodes = _episodes(path, metrics, mode)
  task = config.get('task', path.name)
  if repeat is None:
    repeat = _repeat(config, task, metrics)
  steps, scores = (
    np.array([episode[name] for episode in episodes], float)
    for name in ('step', 'episode/score')
  )
  last = max(steps[-1], metrics[-1]['step'] if metrics else 0)
  return Run(
    label=label,
    task=task,
    benchmark=_benchmark(config, task, repeat),
    steps=steps * repeat,
    scores=scores,
    reach=last * repeat,
    maxima=_maxima(episodes),
    path=path,
  )


def load_scores(path: epath.Path, label: str = '') -> list[Run]:
  """Loads a file of scores of runs, as the public implementation keeps them.

  It is a list of objects as JSON, which may be compressed by gzip: 'task',
  'method', 'seed', 'xs' (environment steps) and 'ys' (scores, null for none).
  Its name starts with the benchmark, as in 'atari100k-dreamerv3.json.gz'.

  Args:
    path: The file.
    label: Label of the runs, by default their method.

  Raises:
    UserError: The file has another form.
  """
  data = path.read_bytes()
  try:
    if path.name.endswith('.gz'):
      data = gzip.decompress(data)
    return [
      make_run(
        label or item['method'],
        item['task'],
        path.name.partition('-')[0],
        [p for p in zip(item['xs'], item['ys'], strict=True) if None not in p],
      )
      for item in json.loads(data)
    ]
  except (ValueError, KeyError, TypeError, EOFError, OSError) as e:
    raise UserError(
      f'{str(path)!r} is neither a log directory nor a file of scores: a JSON '
      f'list of objects with task, method, xs and ys ({e!r}).'
    ) from e


def load_table(
  path: epath.Path, label: str = '', repeat: float = 1
) -> list[Run]:
  """Loads a CSV file of the episodes of one task, which names the file.

  Its columns are 'implementation', 'seed', 'step' (agent steps at the end of
  the episode) and 'score'; others are ignored.

  Args:
    path: The file.
    label: Label of the runs, by default their implementation.
    repeat: Environment steps per agent step.

  Raises:
    UserError: The file has another form.
  """
  points: dict[tuple[str, str], list[tuple[float, float]]] = {}
  try:
    for row in csv.DictReader(io.StringIO(path.read_text())):
      point = float(row['step']) * repeat, float(row['score'])
      if not np.isfinite(point).all():
        raise ValueError(f'{row} is not finite')
      points.setdefault((row['implementation'], row['seed']), []).append(point)
    if not points:
      raise ValueError('it has no rows')
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(
      f'{str(path)!r} is not a table of scores with implementation, seed, step '
      f'and score ({e!r}).'
    ) from e
  return [
    make_run(label or name, path.stem, '', episodes)
    for (name, _), episodes in points.items()
  ]


def group(runs: Iterable[Run]) -> Groups:
  """Groups the seeds of a task and label, by (benchmark, task, label)."""
  groups: Groups = {}
  for run in runs:
    groups.setdefault((run.benchmark, run.task, run.label), []).append(run)
  return groups


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


def last_score(run: Run) -> float:
  """Returns the mean of the last tenth of the steps, at least ten episodes."""
  late = int((run.steps > 0.9 * run.reach).sum())
  return float(run.scores[-max(late, 10) :].mean())


def make_run(
  label: str, task: str, benchmark: str, points: Sequence[tuple[float, float]]
) -> Run:
  """Makes a run from pairs of environment steps and scores, in any order.

  Raises:
    ValueError: There are none.
  """
  if not points:
    raise ValueError(f'{task} has no score')
  steps, scores = np.array(sorted(points), float).T
  return Run(label, task, benchmark, steps, scores, float(steps[-1]))


def _episodes(
  path: epath.Path, metrics: list[dict[str, Any]], mode: str
) -> list[dict[str, Any]]:
  """Returns lines with 'step' and 'episode/score', in order of steps.

  Raises:
    UserError: There is no finished episode of that mode.
  """
  scored = _read(path / 'scores.jsonl')
  lines = [line for line in scored if line.get('mode', 'train') == mode]
  if not lines:
    name = 'episode/score' if mode == 'train' else f'{mode}/episode/score'
    lines = [
      {'step': line['step'], 'episode/score': line[name]}
      for line in metrics
      if name in line
    ]
  lines = [line for line in lines if line['episode/score'] is not None]
  if not lines:
    others = sorted({line.get('mode', 'train') for line in scored})
    hint = f' Use --mode={others[0]} for its other episodes.' if others else ''
    raise UserError(
      f'{str(path)!r} holds no score of a finished {mode} episode yet.{hint}'
    )
  return sorted(lines, key=lambda line: line['step'])


def _maxima(episodes: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  names = {key for line in episodes for key in line if _is_maximum(key)}
  return {
    name.removeprefix('epstats/').removesuffix('/max'): np.array(
      [line.get(name, np.nan) for line in episodes], float
    )
    for name in sorted(names)
  }


def _is_maximum(name: str) -> bool:
  return name.startswith('epstats/') and name.endswith('/max')


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
