"""Decides which checkpoints are kept, and which of them with their replay."""

from collections.abc import Sequence
from typing import Any

from etils import epath
from orbax.checkpoint import v1 as ocp

from dreamer_tpu.checkpoint import layout

_policies = ocp.training.preservation_policies


class _Best:
  """Preserves the `count` steps of the highest score, later ones if equal."""

  def __init__(self, count: int):
    self._count = count

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> list[bool]:
    del context
    scores = {
      x.step: x.metrics[layout.SCORE]
      for x in checkpoints
      if x.metrics and layout.SCORE in x.metrics
    }
    ordered = sorted(scores, key=lambda step: (scores[step], step))
    return [x.step in ordered[-self._count :] for x in checkpoints]


def policy(keep: int, keep_every: int, keep_best: int) -> Any:
  """Returns the policy that Orbax preserves steps by.

  Args:
    keep: Number of newest steps.
    keep_every: Agent steps between those that are kept for good; 0 for none.
    keep_best: Number of steps with the highest scores.
  """
  chosen: list[Any] = [_policies.LatestN(keep)]
  if keep_every:
    chosen.append(_policies.EveryNSteps(keep_every, exact_interval=False))
  if keep_best:
    chosen.append(_Best(keep_best))
  return _policies.AnyPreservationPolicy(chosen)


def drop_replay(folder: epath.Path) -> None:
  """Deletes the replay manifests of a step, keeping agent and run state.

  A replay of millions of steps takes many times the space of an agent. The
  marker comes first: a step never looks as if it had part of its replay.
  """
  replay = folder / layout.REPLAY
  (replay / layout.REPLAY_DROPPED).touch()
  for manifest in replay.glob('*.json'):
    manifest.unlink()
