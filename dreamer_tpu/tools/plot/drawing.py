"""Draws learning curves, published ones, and performance profiles."""

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from dreamer_tpu.tools.plot import curves, protocol, published, statistics

# The palette of Okabe and Ito, safe for color blindness.
_COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_GRAY = '#8A8A8A'
_WINDOWS = 30


def draw(
  groups: curves.Groups,
  choice: str = 'auto',
  finals: Sequence[protocol.Final] = (),
) -> Figure:
  """Draws one panel per task, with published scores in the background.

  A panel per benchmark with final scores of several tasks follows, which shows
  the performance profile: the fraction of runs above each score.

  Args:
    groups: Runs.
    choice: Published scores to draw, see `published.find`.
    finals: Final scores of benchmarks.
  """
  panels: dict[tuple[str, str], curves.Groups] = {}
  for key, runs in groups.items():
    panels.setdefault(key[:2], {})[key] = runs
  profiles = [item for item in finals if _has_profile(item)]
  axes, figure = _grid(len(panels) + len(profiles))
  for ax, ((benchmark, task), members) in zip(
    axes, panels.items(), strict=False
  ):
    _draw_panel(ax, members, choice)
    same_task = sum(other == task for _, other in panels) > 1
    ax.set_title(f'{task} ({benchmark})' if same_task else task)
  for ax, item in zip(axes[len(panels) :], profiles, strict=True):
    _draw_profile(ax, item)
  return figure


def _grid(count: int) -> tuple[list[Axes], Figure]:
  """Returns a figure with `count` panels."""
  columns = math.ceil(math.sqrt(count))
  if count > 4:
    columns = min(6, columns + 1)
  rows = math.ceil(count / columns)
  size = (7.2, 4.4) if count == 1 else (4.4 * columns, 3.3 * rows)
  figure = Figure(size, dpi=150, layout='constrained')
  axes = list(figure.subplots(rows, columns, squeeze=False).flat)
  for ax in axes[count:]:
    ax.set_axis_off()
  return axes[:count], figure


def _has_profile(item: protocol.Final) -> bool:
  return any(len(agent.scores) > 1 for agent in item.agents)


def _draw_profile(ax: Axes, item: protocol.Final) -> None:
  """Draws the performance profile of a benchmark, with 95% bands."""
  lines = [(item.published, _GRAY)] if item.published else []
  lines += zip(item.agents, itertools.cycle(_COLORS), strict=False)
  pooled = np.concatenate([x for a, _ in lines for x in a.scores.values()])
  levels = np.linspace(min(0, pooled.min()), np.quantile(pooled, 0.95), 100)
  profile = functools.partial(statistics.profile, levels=levels)
  for agent, color in lines:
    scores = list(agent.scores.values())
    if scores:
      label = agent.label or 'dreamer_tpu'
      ax.plot(levels, profile(scores), color=color, linewidth=2, label=label)
      band = statistics.interval(profile, scores)
      ax.fill_between(levels, *band, color=color, alpha=0.2, linewidth=0)
  ax.set_title(item.benchmark)
  ax.set_xlabel(f'Final {item.rule.unit}')
  ax.set_ylabel('Fraction of runs above it')
  _style(ax)


def _draw_panel(ax: Axes, groups: curves.Groups, choice: str) -> None:
  reach = max(run.reach for runs in groups.values() for run in runs)
  right = reach
  curve = published.find(choice, next(iter(groups.values()))[0])
  if curve is not None:
    right = _draw_published(ax, curve, reach)
  for index, ((*_, label), runs) in enumerate(groups.items()):
    color = _COLORS[index % len(_COLORS)]
    _draw_runs(ax, runs, label or 'dreamer_tpu', color)
  ax.set_xlim(0, 1.02 * right)
  ax.xaxis.set_major_formatter(EngFormatter(sep=''))
  ax.set_xlabel('Environment steps')
  ax.set_ylabel('Episode score')
  _style(ax)


def _draw_published(
  ax: Axes, curve: published.Published, reach: float
) -> float:
  """Draws the curve a little beyond the runs. Returns: the last step."""
  shown = int(np.searchsorted(curve.ends, reach)) + 1
  shown = max(3, min(shown, len(curve.ends)))
  centers = _centers(curve.edges)[:shown]
  label = f'published ({_seeds(curve.seeds)})'
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
  text = f'{label} ({_seeds(len(runs))})'
  median = np.nanmedian(means, 0)
  ax.plot(centers, median, color=color, linewidth=2, label=text)


def _style(ax: Axes) -> None:
  ax.grid(True, color='#E6E6E6', linewidth=0.8)
  ax.set_axisbelow(True)
  ax.spines[['top', 'right']].set_visible(False)
  ax.legend(frameon=False, fontsize=8, loc='best')


def _centers(edges: np.ndarray) -> np.ndarray:
  return (edges[:-1] + edges[1:]) / 2


def _seeds(count: int) -> str:
  return f'{count} seed' + 's' * (count != 1)
