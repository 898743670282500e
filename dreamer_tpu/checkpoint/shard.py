"""What a process saves and restores by itself: its replays and its streams."""

from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from dreamer_tpu.checkpoint.manager import Manifests
from dreamer_tpu.replay import Replay, Snapshot, prune

# The shard's manifest is that of the training replay, with these in it.
EVAL = 'eval'
LOCAL = 'local'


class Shard:
  """The replays of this process, in folders that all processes share.

  Args:
    logdir: Of the run.
    replay: Of training.
    eval_replay: Of evaluations, if their steps are kept.
  """

  def __init__(
    self,
    logdir: epath.Path,
    replay: Replay,
    eval_replay: Replay | None = None,
  ):
    self._replays = {'': (replay, logdir / 'replay')}
    if eval_replay is not None:
      self._replays[EVAL] = (eval_replay, logdir / 'replay_eval')
    self._snapshots: dict[str, Snapshot] = {}
    self._local: Any = None

  def freeze(self, local: Any) -> None:
    """Remembers the state of now for `write`, and gives up the one before.

    Args:
      local: JSON values that hold only together with the replays.
    """
    for snapshot in self._snapshots.values():
      snapshot.discard()  # Only has an effect if its save failed.
    self._snapshots = {
      name: replay.snapshot(folder)
      for name, (replay, folder) in self._replays.items()
    }
    self._local = local

  def write(self) -> dict[str, Any]:
    """Writes what was frozen and returns its manifest; on any thread."""
    parts = {name: x.write() for name, x in self._snapshots.items()}
    return {**parts.pop(''), **parts, LOCAL: self._local}

  def load(self, manifests: Mapping[str, Any]) -> Any:
    """Replaces the replays by this process's part of saved ones.

    Args:
      manifests: Those of all processes that saved, by process.

    Returns:
      What was saved as `local`, None if the steps have got new addresses.

    Raises:
      UserError: The steps have other keys, shapes or dtypes.
      ReplayCorrupt: A file is missing or damaged.
    """
    exact = True
    for name, (replay, folder) in self._replays.items():
      saved = _parts(manifests.values(), name)
      if saved:
        exact &= replay.load(folder, saved, jax.process_count())
    own = manifests.get(str(jax.process_index()), {})
    return own.get(LOCAL) if exact else None

  def prune(self, kept: Manifests) -> None:
    """Deletes the files that none of the manifests names."""
    shards = [x for manifests in kept.values() for x in manifests.values()]
    for name, (replay, folder) in self._replays.items():
      saved = _parts(shards, name)
      replay.prune(folder, saved)
      if jax.process_index() == 0:
        prune(folder, saved, first=jax.process_count())


def _parts(shards: Any, name: str) -> list[dict[str, Any]]:
  """One replay's manifests; without those that do not have it."""
  return [x[name] if name else x for x in shards if not name or name in x]
