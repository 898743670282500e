"""Which steps are kept, and what of them."""

import math
from collections.abc import Sequence

from etils import epath
from orbax.checkpoint import v1 as ocp

from dreamer_tpu.checkpoint import layout

_policies = ocp.training.preservation_policies


def policy(
  keep: int, keep_every: int = 0, keep_best: int = 0
) -> ocp.training.preservation_policies.PreservationPolicy:
  """What Orbax is to keep.

  Args:
    keep: The newest steps.
    keep_every: For good, the first step, and then each that comes at least so
      many agent steps after the one kept before it; 0 for none.
    keep_best: The steps of the highest evaluation scores, the later one of
      equals; 0 for none.
  """
  chosen: list = [_policies.LatestN(keep)]
  if keep_every:
    chosen.append(_policies.EveryNSteps(keep_every, exact_interval=False))
  if keep_best:
    chosen.append(_Best(keep_best))
  return _policies.AnyPreservationPolicy(chosen)


class _Best:
  """Orbax's choice of the best, among the steps that have a score."""

  def __init__(self, count: int):
    self._best = _policies.BestN(
      get_metric_fn=lambda metrics: metrics[layout.SCORE], n=count
    )

  def should_preserve(self, checkpoints: Sequence, *, context) -> list[bool]:
    scored = [x for x in checkpoints if _score(x) is not None]
    kept = self._best.should_preserve(scored, context=context)
    steps = {x.step for x, keep in zip(scored, kept, strict=True) if keep}
    return [x.step in steps for x in checkpoints]


def metrics(score: float | None) -> dict[str, float] | None:
  """A score in the form that Orbax keeps; None if there is no finite one."""
  if score is None or not math.isfinite(score):
    return None
  return {layout.SCORE: float(score)}


def release(folder: epath.Path) -> None:
  """Lets a step's replay go; its agent and run state stay.

  A replay of millions of steps takes many times the room of an agent, so only
  the newest steps keep theirs. The mark comes first: at no time are some of
  the manifests there and others not.
  """
  replay = folder / layout.REPLAY
  (replay / layout.RELEASED).touch()
  for manifest in replay.glob('*.json'):
    manifest.unlink()


def _score(checkpoint) -> float | None:
  return (checkpoint.metrics or {}).get(layout.SCORE)
