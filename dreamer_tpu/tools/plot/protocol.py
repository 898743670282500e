"""Rules by which publications turn the episodes of a run into one score."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from dreamer_tpu.errors import UserError
from dreamer_tpu.tools.plot import published
from dreamer_tpu.tools.plot.curves import Run

# A run that ends within this fraction before the budget counts as complete.
_SHORT = 0.05


@dataclasses.dataclass(frozen=True)
class Rule:
  """Mean score of the training episodes that end in a window of steps.

  Attributes:
    budget: Environment steps that a run may take; later episodes are ignored.
    width: Environment steps of the window, which includes both of its ends.
    fixed: The window ends at the budget, not at the last step up to it.
    unit: Name of the scores.
    digits: Digits of the scores after the decimal point.
  """

  budget: float
  width: float
  fixed: bool = False
  unit: str = 'score'
  digits: int = 1

  @property
  def text(self) -> str:
    """Description of the window."""
    if self.fixed:
      return f'steps {self.budget - self.width:,.0f} to {self.budget:,.0f}'
    return f'last {self.width:,.0f} of {self.budget:,.0f} steps'


@dataclasses.dataclass(frozen=True)
class Agent:
  """Final scores of the runs of one label.

  Attributes:
    label: The label.
    runs: Runs, with or without a final score.
    scores: Final scores of the runs that have one, by task.
  """

  label: str
  runs: Sequence[Run]
  scores: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Final:
  """Final scores of one benchmark.

  Attributes:
    benchmark: Its name.
    rule: Its rule.
    agents: Agents to compare.
    published: The published runs of the same tasks; None if there are none.
  """

  benchmark: str
  rule: Rule
  agents: Sequence[Agent]
  published: Agent | None


RULES = {
  'atari100k': Rule(400e3, 10e3, True, 'human-normalized score', 3),
  'atari57': Rule(200e6, 2e6, True, 'human-normalized score', 3),
  'dmc_proprio': Rule(500e3, 50e3),
  'dmc_vision': Rule(1e6, 50e3),
  'procgen': Rule(50e6, 1e6, False, 'normalized score', 3),
  'crafter': Rule(1e6, 100e3),
}


def finals(runs: Sequence[Run], width: float | None = None) -> list[Final]:
  """Returns the final scores of the benchmarks that have a rule.

  Args:
    runs: Runs of any benchmarks and labels.
    width: Environment steps of the window, if not those of the benchmark.

  Raises:
    UserError: The window is longer than that of a benchmark; no more is known
      of the published runs.
  """
  found = []
  for benchmark in dict.fromkeys(run.benchmark for run in runs):
    if rule := RULES.get(benchmark):
      if width is not None:
        if not 0 < width <= rule.width:
          raise UserError(
            f'--window={width:g}: the window of {benchmark} has at most '
            f'{rule.width:,.0f} environment steps.'
          )
        rule = dataclasses.replace(rule, width=width)
      found.append(_final(benchmark, rule, runs))
  return found


def final_score(run: Run, rule: Rule) -> float:
  """Returns the score of a run.

  Atari's and ProcGen's are between the two scores of reference.

  Returns:
    NaN if the run is too short or no episode ends in the window.
  """
  end = rule.budget if rule.fixed else min(run.reach, rule.budget)
  inside = (run.steps >= end - rule.width) & (run.steps <= end)
  if end < (1 - _SHORT) * rule.budget or not inside.any():
    return np.nan
  score = float(run.scores[inside].mean())
  normal = published.normalized(run.task, score)
  return score if np.isnan(normal) else normal


def success_score(run: Run) -> float:
  """Returns Crafter's score, in percent.

  It is the geometric mean, with an offset of 1%, of the rates at which the
  episodes of the first million steps unlock each achievement.

  Returns:
    NaN if the run is too short, or has no counts of achievements.
  """
  rule = RULES['crafter']
  inside = run.steps <= rule.budget
  counts = [
    values[inside]
    for name, values in run.maxima.items()
    if name.startswith('achievement_')
  ]
  if run.reach < (1 - _SHORT) * rule.budget or not counts:
    return np.nan
  rates = 100 * (np.stack(counts) >= 1).mean(1)
  return float(np.expm1(np.log1p(rates).mean()))


def _final(benchmark: str, rule: Rule, runs: Sequence[Run]) -> Final:
  mine = [run for run in runs if run.benchmark == benchmark]
  tasks = {run.task for run in mine}
  theirs = [
    run
    for run in published.runs()
    if run.benchmark == benchmark and run.task in tasks
  ]
  agents = [
    _agent(label, [run for run in mine if run.label == label], rule)
    for label in dict.fromkeys(run.label for run in mine)
  ]
  other = _agent('published', theirs, rule) if theirs else None
  return Final(benchmark, rule, agents, other)


def _agent(label: str, runs: Sequence[Run], rule: Rule) -> Agent:
  scores: dict[str, list[float]] = {}
  for run in runs:
    score = final_score(run, rule)
    if np.isfinite(score):
      scores.setdefault(run.task, []).append(score)
  return Agent(label, runs, {k: np.array(v) for k, v in scores.items()})
