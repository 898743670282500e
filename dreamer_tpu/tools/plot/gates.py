"""Gates: conditions on scores that a set of runs passes or fails."""

from collections.abc import Callable, Sequence

import numpy as np

from dreamer_tpu.tools.plot import published
from dreamer_tpu.tools.plot.curves import Run, window_means

# The gate of TorchRL's benchmark of DreamerV3.
_WALKER, _SEEDS, _WINDOW, _SCORE = 'dmc_walker_walk', 3, 50_000, 900.0

Gate = Callable[[Sequence[Run], str], tuple[bool, str]]


def in_published_range(runs: Sequence[Run], choice: str) -> tuple[bool, str]:
  """Passes if the median over seeds reaches the worst published seed.

  It compares the mean scores in the last window of the published curve that
  all runs have completed.

  Args:
    runs: Seeds of one task.
    choice: Published scores, see `published.find`.

  Returns:
    A pair (passed, reason).
  """
  curve = published.find(choice, runs[0])
  if curve is None:
    return False, 'no published scores'
  means = np.stack([window_means(run, curve.edges) for run in runs])
  common = np.isfinite(means).all(0) & np.isfinite(curve.low)
  if not common.any():
    return False, f'no complete window of {curve.ends[0]:,.0f} steps'
  index = np.flatnonzero(common)[-1]
  score, low = float(np.median(means[:, index])), curve.low[index]
  return score >= low, (
    f'{score:.1f} at {curve.ends[index]:,.0f} steps, published {low:.1f} to '
    f'{curve.high[index]:.1f}'
  )


def walker_walk(runs: Sequence[Run], choice: str) -> tuple[bool, str]:
  """Passes if walker walk is learned as well as another library demands.

  The median over at least three seeds of the mean score of the training
  episodes in the last 50,000 steps is at least 900.

  Args:
    runs: Seeds of one task.
    choice: Ignored.

  Returns:
    A pair (passed, reason).
  """
  del choice
  if runs[0].task != _WALKER:
    return False, f'the gate is for {_WALKER}'
  if len(runs) < _SEEDS:
    return False, f'{len(runs)} of {_SEEDS} seeds'
  scores = [
    run.scores[run.steps > run.reach - _WINDOW].mean()
    for run in runs
    if (run.steps > run.reach - _WINDOW).any()
  ]
  if len(scores) < len(runs):
    return False, f'no episode in the last {_WINDOW:,} steps of a seed'
  score = float(np.median(scores))
  return score >= _SCORE, (
    f'{score:.1f} in the last {_WINDOW:,} steps, required {_SCORE:.0f}'
  )


GATES: dict[str, Gate] = {
  'published': in_published_range,
  'walker_walk': walker_walk,
}
