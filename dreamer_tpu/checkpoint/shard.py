"""Part of a checkpoint that each process saves: its replays and streams."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from dreamer_tpu.replay import Replay, prune

# The manifest of a process is that of its training replay, plus these keys.
EVAL = 'eval'
LOCAL = 'local'


class Shard:
  """Saves and restores the replays of this process.

  Args:
    logdir: Directory of the run, shared by all processes.
    replay: Training replay.
    eval_replay: Evaluation replay, if there is one.
  """

  def __init__(
    self, logdir: epath.Path, replay: Replay, eval_replay: Replay | None = None
  ):
    self._replays = {'': (replay, logdir / 'replay')}
    if eval_replay is not None:
      self._replays[EVAL] = (eval_replay, logdir / 'replay_eval')
    self._snapshots: dict[str, Any] = {}

  @property
  def planned_bytes(self) -> int:
    """Bytes of steps and latents that the last snapshot writes."""
    return sum(x.planned_bytes for x in self._snapshots.values())

  def snapshot(self, local: Any) -> Callable[[], dict[str, Any]]:
    """Freezes the replays and discards the previous, unwritten snapshot.

    Args:
      local: JSON values of this process, valid only with these replays.

    Returns:
      Function that writes the snapshot, on any thread, and returns its
      manifest.
    """
    for snapshot in self._snapshots.values():
      snapshot.discard()  # No effect if it was written.
    snapshots = {
      name: replay.snapshot(folder)
      for name, (replay, folder) in self._replays.items()
    }
    self._snapshots = snapshots

    def write() -> dict[str, Any]:
      parts = {name: snapshot.write() for name, snapshot in snapshots.items()}
      return {**parts.pop(''), **parts, LOCAL: local}

    return write

  def load(self, manifests: Mapping[str, Any]) -> Any:
    """Replaces the replays by this process's part of saved ones.

    Args:
      manifests: Manifests of all processes that saved, by process number.

    Returns:
      The saved `local`; None if the steps have new addresses.

    Raises:
      UserError: The steps have other keys, shapes or dtypes.
      ReplayCorrupt: A file is missing or corrupt.
    """
    exact = True
    for name, (replay, folder) in self._replays.items():
      if saved := select(manifests.values(), name):
        exact &= replay.load(folder, saved, jax.process_count())
    own = manifests.get(str(jax.process_index()), {})
    return own.get(LOCAL) if exact else None

  def prune(self, kept: Mapping[str, Mapping[str, Any]]) -> None:
    """Deletes files that none of the manifests names.

    Args:
      kept: Manifests by checkpoint and process number.
    """
    shards = [x for manifests in kept.values() for x in manifests.values()]
    for name, (replay, folder) in self._replays.items():
      saved = select(shards, name)
      replay.prune(folder, saved)
      if jax.process_index() == 0:
        prune(folder, saved, first=jax.process_count())


def select(manifests: Any, name: str) -> list[dict[str, Any]]:
  """Returns the manifests of one replay."""
  return [x[name] if name else x for x in manifests if not name or name in x]
