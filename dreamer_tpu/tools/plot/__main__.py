"""Plots learning curves with published ones, or an open-loop video.

python -m dreamer_tpu.tools.plot LOGDIR... --out=curves.png
python -m dreamer_tpu.tools.plot new=RUN1 old=RUN2 --out=curves.png
python -m dreamer_tpu.tools.plot LOGDIR --openloop --out=openloop.png
"""

import argparse
import math
import sys
from collections.abc import Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics import terminal, video
from dreamer_tpu.tools.plot import curves, openloop

# The palette of Okabe and Ito, safe for color blindness.
_COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_GRAY = '#8A8A8A'
_WINDOWS = 30
_HEADER = (
  'task',
  'seeds',
  'env steps',
  'score (min to max)',
  'published',
  'area',
  'human-norm.',
)
_NOTES = (
  'score: median over seeds of the last tenth of the steps. published: median',
  'at that step. area: relative to the published median, over common steps.',
)

Groups = dict[tuple[str, str, str], list[curves.Run]]


def main(arguments: Sequence[str] | None = None) -> int:
  """Prints the table and writes the picture. Returns: the exit code."""
  options = _parser().parse_args(arguments)
  try:
    if options.openloop:
      figure = _openloop(options)
    else:
      runs = curves.find_runs(options.logdir, options.mode, options.repeat)
      groups = group(runs)
      print('\n'.join(table(groups, options.published)))
      figure = draw(groups, options.published)
    _save(figure, options.out)
  except UserError as e:
    print(f'error: {e}', file=sys.stderr)
    return 1
  print(f'wrote {options.out}')
  return 0


def group(runs: Sequence[curves.Run]) -> Groups:
  """Groups the seeds of a task and label, by (benchmark, task, label)."""
  groups: Groups = {}
  for run in runs:
    key = (run.benchmark, run.task, run.label)
    groups.setdefault(key, []).append(run)
  return groups


def table(groups: Groups, choice: str = 'auto') -> list[str]:
  """Returns the lines of the table of scores, aggregates last."""
  rows = [_HEADER, *(_row(k, runs, choice) for k, runs in groups.items())]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join(
      cell.ljust(width) if index == 0 else cell.rjust(width)
      for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    for row in rows
  ]
  return [*lines, '', *aggregates(groups), *_NOTES]


def aggregates(groups: Groups) -> list[str]:
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
      human = [curves.human_normalized(task, x) for task, x in of.items()]
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


def draw(groups: Groups, choice: str = 'auto') -> Figure:
  """Draws one panel per task, with published scores in the background."""
  panels: dict[tuple[str, str], Groups] = {}
  for key, runs in groups.items():
    panels.setdefault(key[:2], {})[key] = runs
  columns = math.ceil(math.sqrt(len(panels)))
  if len(panels) > 4:
    columns = min(6, columns + 1)
  rows = math.ceil(len(panels) / columns)
  size = (7.2, 4.4) if len(panels) == 1 else (4.4 * columns, 3.3 * rows)
  figure = Figure(size, dpi=150, layout='constrained')
  axes = list(figure.subplots(rows, columns, squeeze=False).flat)
  for ax in axes[len(panels) :]:
    ax.set_axis_off()
  for ax, ((benchmark, task), members) in zip(
    axes, panels.items(), strict=False
  ):
    _draw_panel(ax, members, choice)
    same_task = sum(other == task for _, other in panels) > 1
    ax.set_title(f'{task} ({benchmark})' if same_task else task)
  return figure


def _draw_panel(ax: Axes, groups: Groups, choice: str) -> None:
  reach = max(run.reach for runs in groups.values() for run in runs)
  right = reach
  curve = curves.find_published(choice, next(iter(groups.values()))[0])
  if curve is not None:
    right = _draw_published(ax, curve, reach)
  for index, ((*_, label), runs) in enumerate(groups.items()):
    color = _COLORS[index % len(_COLORS)]
    _draw_runs(ax, runs, label or 'dreamer_tpu', color)
  ax.set_xlim(0, 1.02 * right)
  ax.xaxis.set_major_formatter(EngFormatter(sep=''))
  ax.set_xlabel('Environment steps')
  ax.set_ylabel('Episode score')
  ax.grid(True, color='#E6E6E6', linewidth=0.8)
  ax.set_axisbelow(True)
  ax.spines[['top', 'right']].set_visible(False)
  ax.legend(frameon=False, fontsize=8, loc='best')


def _draw_published(ax: Axes, curve: curves.Published, reach: float) -> float:
  """Draws the curve a little beyond the runs. Returns: the last step."""
  shown = int(np.searchsorted(curve.ends, reach)) + 1
  shown = max(3, min(shown, len(curve.ends)))
  centers = _centers(curve.edges)[:shown]
  label = f'published ({_count(range(curve.seeds), "seed")})'
  ax.plot(
    centers, curve.median[:shown], color=_GRAY, linewidth=1.5, label=label
  )
  low, high = curve.low[:shown], curve.high[:shown]
  ax.fill_between(centers, low, high, color=_GRAY, alpha=0.2, linewidth=0)
  return max(reach, min(centers[-1], 1.1 * reach, curve.ends[-1]))


def _draw_runs(
  ax: Axes, runs: Sequence[curves.Run], label: str, color: str
) -> None:
  edges = np.linspace(0, max(run.reach for run in runs), _WINDOWS + 1)
  means = np.stack([curves.window_means(run, edges) for run in runs])
  covered = np.isfinite(means).any(0)
  means, centers = means[:, covered], _centers(edges)[covered]
  if len(runs) == 1:
    run = runs[0]
    ax.plot(run.steps, run.scores, '.', color=color, alpha=0.15, markersize=3)
  else:
    low, high = np.nanmin(means, 0), np.nanmax(means, 0)
    ax.fill_between(centers, low, high, color=color, alpha=0.2, linewidth=0)
  text = f'{label} ({_count(runs, "seed")})'
  median = np.nanmedian(means, 0)
  ax.plot(centers, median, color=color, linewidth=2, label=text)


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
  curve = curves.find_published(choice, runs[0])
  theirs = curves.published_score(curve, reach) if curve else np.nan
  area = curves.relative_area(runs, curve) if curve else np.nan
  return (
    f'{label}: {task}' if label else task,
    str(len(runs)),
    terminal.number(max(run.reach for run in runs)),
    text,
    _cell(theirs, '.1f'),
    _cell(area, '.1%'),
    _cell(curves.human_normalized(task, score), '.1%'),
  )


def _openloop(options: argparse.Namespace) -> Figure:
  logdir = epath.Path(options.logdir[0])
  if len(options.logdir) > 1:
    raise UserError('--openloop takes a single log directory.')
  frames = video.read_gif(openloop.find_video(logdir, options.key))
  return openloop.draw(
    frames, openloop.tile_width(logdir, frames), options.samples
  )


def _save(figure: Figure, name: str) -> None:
  path = epath.Path(name)
  kinds = figure.canvas.get_supported_filetypes()
  kind = path.suffix.removeprefix('.').lower()
  if kind not in kinds:
    raise UserError(f'--out={name}: unknown file type; use .png.')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('wb') as file:
      figure.savefig(file, format=kind, bbox_inches='tight')
  except OSError as e:
    raise UserError(f'--out={name} cannot be written: {e.strerror}.') from e


def _median_score(runs: Sequence[curves.Run]) -> float:
  return float(np.median([curves.last_score(run) for run in runs]))


def _centers(edges: np.ndarray) -> np.ndarray:
  return (edges[:-1] + edges[1:]) / 2


def _cell(value: float, form: str) -> str:
  return format(value, form) if np.isfinite(value) else '-'


def _count(items: Sequence | dict, name: str) -> str:
  return f'{len(items)} {name}' + 's' * (len(items) != 1)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m dreamer_tpu.tools.plot', description=__doc__.splitlines()[0]
  )
  parser.add_argument(
    'logdir',
    nargs='+',
    help='log directories or folders of them, optionally as LABEL=PATH',
  )
  parser.add_argument('--out', required=True, help='picture to write')
  parser.add_argument(
    '--published', default='auto', help='auto, none, TASK or BENCHMARK/TASK'
  )
  parser.add_argument('--mode', choices=('train', 'eval'), default='train')
  parser.add_argument(
    '--repeat',
    type=float,
    help='environment steps per agent step, if not that of the run',
  )
  parser.add_argument(
    '--openloop', action='store_true', help='draw the open-loop video'
  )
  parser.add_argument('--key', default='', help='observation key of the video')
  parser.add_argument(
    '--samples', type=int, default=1, help='sequences of the video to draw'
  )
  return parser


if __name__ == '__main__':
  sys.exit(main())
