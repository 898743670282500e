"""Tables of the scores of runs, next to published ones."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dreamer_tpu.metrics import terminal
from dreamer_tpu.tools.plot import (
  bsuite_scores,
  curves,
  protocol,
  published,
  statistics,
)

_HEADER = (
  'task',
  'seeds',
  'env steps',
  'score (min to max)',
  'published',
  'area',
  'normalized',
)
_NOTES = (
  'score: median over seeds of the last tenth of the steps. published: median',
  'at that step. area: relative to the published median, over common steps.',
)
_FINAL_HEADER = ('', 'runs', 'mean', 'median', 'IQM', 'P(better)')
_FINAL_NOTES = (
  'mean, median: over tasks, of the mean over seeds. IQM: interquartile mean',
  'of all runs. P(better): a run scores higher than a published run of its',
  'task. In parentheses: 95% intervals, stratified bootstrap over seeds.',
)


def current(groups: curves.Groups, choice: str = 'auto') -> list[str]:
  """Returns the lines of the table of scores so far, aggregates last."""
  rows = [_row(k, runs, choice) for k, runs in groups.items()]
  lines = [*_table([_HEADER, *rows]), '', *_aggregates(groups), *_NOTES]
  return [*lines, *_ratios(groups)]


def _ratios(groups: curves.Groups) -> Iterable[str]:
  """Yields a line per later label of a task: its area over the first's."""
  first: dict[tuple[str, str], tuple[str, list[curves.Run]]] = {}
  for (benchmark, task, label), runs in groups.items():
    name, others = first.setdefault((benchmark, task), (label, runs))
    if others is not runs:
      areas = published.areas(runs, others)
      text = '-'
      if np.isfinite(areas[0]).all() and areas[1].mean() > 0:
        text = _estimate(statistics.ratio, 2, *([x] for x in areas))
      yield f'area of {label} relative to {name}: {task} {text}'


def final(finals: Sequence[protocol.Final]) -> list[str]:
  """Returns the lines of a table for each benchmark with final scores."""
  lines: list[str] = []
  for item in finals:
    if any(agent.scores for agent in item.agents):
      lines += ['', f'{item.benchmark}: {item.rule.unit}, {item.rule.text}']
      lines += _final_table(item)
      if item.benchmark == 'crafter':
        lines += _achievements(item.agents)
  return [*lines, *_FINAL_NOTES] if lines else []


def bsuite(runs: Sequence[curves.Run]) -> list[str]:
  """Returns lines with BSuite's scores, by label; nothing without its tasks."""
  lines = []
  runs = [run for run in runs if run.benchmark == 'bsuite']
  for label in dict.fromkeys(run.label for run in runs):
    score = bsuite_scores.score([run for run in runs if run.label == label])
    lines += ['', *_bsuite(f'{label}: ' if label else '', score)]
  return lines


def _row(
  key: tuple[str, str, str], runs: Sequence[curves.Run], choice: str
) -> tuple[str, ...]:
  _, task, label = key
  scores = [curves.last_score(run) for run in runs]
  score = _median_score(runs)
  text = f'{score:.1f}'
  if len(runs) > 1:
    text += f' ({min(scores):.1f} to {max(scores):.1f})'
  reach = min(run.reach for run in runs)
  curve = published.find(choice, runs[0])
  theirs = published.score_at(curve, reach) if curve else np.nan
  area = published.relative_area(runs, curve) if curve else np.nan
  return (
    f'{label}: {task}' if label else task,
    str(len(runs)),
    terminal.number(max(run.reach for run in runs)),
    text,
    _cell(theirs, '.1f'),
    _cell(area, '.1%'),
    _cell(published.normalized(task, score), '.1%'),
  )


def _aggregates(groups: curves.Groups) -> list[str]:
  """Returns a line per label and benchmark with the usual aggregates."""
  lines = []
  for label in dict.fromkeys(label for *_, label in groups):
    scores = {
      (benchmark, task): _median_score(runs)
      for (benchmark, task, other), runs in groups.items()
      if other == label
    }
    prefix = f'{label}: ' if label else ''
    for benchmark in dict.fromkeys(benchmark for benchmark, _ in scores):
      of = {task: x for (name, task), x in scores.items() if name == benchmark}
      human = [published.normalized(task, x) for task, x in of.items()]
      if benchmark.startswith('atari') and np.isfinite(human).all():
        lines.append(
          f'{prefix}{benchmark}: human-normalized mean {np.mean(human):.1%}, '
          f'median {np.median(human):.1%} over {_count(human, "game")}'
        )
      elif benchmark.startswith('dmc'):
        mean = float(np.mean(list(of.values())))
        lines.append(
          f'{prefix}{benchmark}: mean score {mean:.1f} over '
          f'{_count(of, "task")}'
        )
  return lines


def _final_table(item: protocol.Final) -> Iterable[str]:
  """Yields a row per agent, and the later agents compared with the first."""
  agents = [*item.agents, item.published] if item.published else item.agents
  rows = [_final_row(agent, item) for agent in agents]
  yield from _table([_FINAL_HEADER, *rows])
  first, *rest = item.agents
  for agent in rest:
    text = _improvement(agent.scores, first.scores)
    yield f'  P({_name(agent)} better than {_name(first)}): {text}'


def _final_row(agent: protocol.Agent, item: protocol.Final) -> tuple[str, ...]:
  scores, other = list(agent.scores.values()), item.published
  count = sum(x.size for x in scores)
  start = f'  {_name(agent)}', f'{count} of {len(agent.runs)}'
  if not count:
    return *start, '-', '-', '-', '-'
  cells = [
    _estimate(statistic, item.rule.digits, scores)
    for statistic in (statistics.mean, statistics.median, statistics.iqm)
  ]
  if other is None or agent is other:
    return *start, *cells, '-'
  return *start, *cells, _improvement(agent.scores, other.scores)


def _improvement(
  scores: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]
) -> str:
  common = [task for task in scores if task in others]
  if not common:
    return '-'
  pair = [scores[task] for task in common], [others[task] for task in common]
  return _estimate(statistics.improvement, 2, *pair)


def _achievements(agents: Sequence[protocol.Agent]) -> Iterable[str]:
  """Yields a line per agent with Crafter's score."""
  for agent in agents:
    scores = np.array([protocol.success_score(run) for run in agent.runs])
    known = scores[np.isfinite(scores)]
    if known.size:
      text = _estimate(statistics.mean, 1, [known])
      yield (
        f'  {_name(agent)}: score {text} % over {_count(known, "seed")}, the '
        'geometric mean of success rates'
      )


def _bsuite(prefix: str, score: bsuite_scores.Score | None) -> Iterable[str]:
  if score is None:
    yield f'{prefix}bsuite: no score; runs log for it in env.bsuite.folder'
    return
  mean = np.mean(list(score.experiments.values()))
  count = _count(score.experiments, 'experiment')
  yield f'{prefix}bsuite: mean score {mean:.3f} over {count}'
  for name, values in (('task', score.experiments), ('ability', score.tags)):
    cells = [f'{k} {x:.3f}' for k, x in values.items() if np.isfinite(x)]
    yield f'  by {name}: {", ".join(cells)}'
  if score.unfinished:
    yield f'  with too few episodes: {", ".join(score.unfinished)}'


def _name(agent: protocol.Agent) -> str:
  return agent.label or 'these runs'


def _estimate(
  statistic: statistics.Statistic, digits: int, *groups: statistics.Scores
) -> str:
  """Returns an estimate, with its interval if seeds differ."""
  text = f'{float(statistic(*groups)):.{digits}f}'
  low, high = statistics.interval(statistic, *groups)
  if low < high:
    text += f' ({low:.{digits}f} to {high:.{digits}f})'
  return text


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
  """Aligns the first column left and the others right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '.join(
      cell.ljust(width) if index == 0 else cell.rjust(width)
      for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]


def _median_score(runs: Sequence[curves.Run]) -> float:
  return float(np.median([curves.last_score(run) for run in runs]))


def _cell(value: float, form: str) -> str:
  return format(value, form) if np.isfinite(value) else '-'


def _count(items: Any, name: str) -> str:
  return f'{len(items)} {name}' + 's' * (len(items) != 1)
