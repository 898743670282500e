"""A whole agent from a step, sharded as it arrives."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from dreamer_tpu.checkpoint import checksums, compare, layout
from dreamer_tpu.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
  """What one step held.

  Attributes:
    step: Agent steps when it was saved.
    agent: The agent state, with the shardings that were asked for.
    run: Counters, clocks, limiter, random state, config, spaces.
    replay: Replay manifests by shard name.
    carry: Of sequences that are trained in parts; None if there is none of
      the shapes that were asked for.
  """

  step: int
  agent: Any
  run: dict[str, Any]
  replay: dict[str, Any]
  carry: Any = None


def restore(
  folder: epath.Path,
  abstract: Any,
  config: Mapping[str, Any] | None = None,
  carry: Any = None,
) -> Restored:
  """Reads a step; nothing is written, whatever the outcome.

  Every process does so by itself and may be the only one to fail; see
  `fallback.py`.

  Args:
    folder: A committed step folder.
    abstract: The agent state's tree of `jax.ShapeDtypeStruct` with shardings
      (any mesh, not only the one that saved).
    config: The nested configuration of this run, to say what changed where
      the checkpoint does not fit.
    carry: As `abstract`, for the carry.

  Raises:
    UserError: The checkpoint belongs to another task, or has other arrays
      than `abstract`.
    Damaged: Files are missing, cut short or changed.
  """
  try:
    released = not layout.has_replay(folder)
    ignore = layout.REPLAY if released else None
    checksums.verify(folder, ignore=ignore, share=True)
    run = layout.read_run(folder)
    manifests = layout.read_manifests(folder)
    shapes = layout.read_shapes(folder)
  except (ValueError, OSError) as error:
    raise layout.damaged(folder, error) from error
  wanted = layout.flatten(abstract)
  arrays = compare.tree_differences(layout.flatten(shapes), wanted)
  keys = compare.config_differences(run.get('config', {}), config or {})
  other_task = config is not None and any(k.startswith('task ') for k in keys)
  if arrays or other_task:
    raise _mismatch(folder, keys if config is not None else [], arrays)
  loaded = layout.load_arrays(folder, shapes, wanted)
  return Restored(
    step=int(folder.name),
    agent=_in_place(loaded, abstract),
    run=run,
    replay=manifests,
    carry=_restore_carry(folder, carry),
  )


def _restore_carry(folder: epath.Path, abstract: Any) -> Any:
  if abstract is None or not (folder / layout.CARRY).exists():
    return None
  shapes = layout.read_shapes(folder, layout.CARRY)
  wanted = layout.flatten(abstract)
  if compare.tree_differences(layout.flatten(shapes), wanted):
    return None  # As with another batch size; sequences begin anew then.
  loaded = layout.load_arrays(folder, shapes, wanted, layout.CARRY)
  return _in_place(loaded, abstract)


def _in_place(loaded: Mapping[str, jax.Array], tree: Any) -> Any:
  return jax.tree_util.tree_map_with_path(
    lambda path, _: loaded[layout.name_of(path)], tree
  )


def _mismatch(
  folder: epath.Path, keys: list[str], arrays: list[str]
) -> UserError:
  parts = []
  if keys:
    parts.append(f'config {compare.first(keys)}')
  if arrays:
    parts.append(f'arrays {compare.first(arrays)}')
  return UserError(
    f"Checkpoint '{folder}' does not fit this configuration: "
    f'{" | ".join(parts)}. Use its configuration (config.json) or another '
    'logdir.'
  )
