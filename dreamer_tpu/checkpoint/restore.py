"""Restores a whole step, or the newest one that is intact."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from absl import logging
from etils import epath

from dreamer_tpu.checkpoint import checksums, layout
from dreamer_tpu.config import flatten
from dreamer_tpu.errors import UserError
from dreamer_tpu.replay import ReplayCorrupt

T = TypeVar('T')

# Config keys in the order in which an error names them.
_GROUPS = ('task', 'agent', 'dtype', 'env')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
  """Content of one step.

  Attributes:
    step: Agent steps when it was saved.
    agent: Agent state, with the requested shardings.
    run: Counters, clocks, train ratio, random state, config, spaces.
    replay: Replay manifests by process number.
    carry: Carry of sequences that are trained in parts; None if the step has
      none of the requested shapes.
  """

  step: int
  agent: Any
  run: dict[str, Any]
  replay: dict[str, Any]
  carry: Any = None


def restore_step(
  folder: epath.Path,
  abstract: Any,
  config: Mapping[str, Any] | None = None,
  carry: Any = None,
) -> Restored:
  """Reads a committed step. Writes nothing.

  Processes do not wait for each other, and some may fail alone; see
  `Checkpointer.restore_newest`.

  Args:
    folder: Step folder.
    abstract: Tree of `jax.ShapeDtypeStruct` of the agent state, with
      shardings over any mesh, not only the one that saved.
    config: Nested configuration of this run, to name what changed if the
      checkpoint does not fit.
    carry: Tree of `jax.ShapeDtypeStruct` of the carry.

  Raises:
    UserError: The checkpoint is of another task, or its arrays differ from
      `abstract`.
    CorruptCheckpoint: Files are missing, truncated or changed.
  """
  try:
    ignore = None if layout.has_replay(folder) else layout.REPLAY
    checksums.verify(folder, ignore=ignore)
    run = layout.read_run(folder)
    manifests = layout.read_manifests(folder)
    shapes = layout.read_shapes(folder)
  except (ValueError, OSError) as error:
    raise layout.unreadable(folder, error) from error
  check_fit(folder, run, shapes, abstract, config)
  loaded = layout.load_arrays(folder, shapes, layout.flatten(abstract))
  return Restored(
    step=int(folder.name),
    agent=layout.unflatten(loaded, abstract),
    run=run,
    replay=manifests,
    carry=_restore_carry(folder, carry),
  )


def check_fit(
  folder: epath.Path,
  run: Mapping[str, Any],
  shapes: Any,
  abstract: Any,
  config: Mapping[str, Any] | None = None,
) -> None:
  """Compares a step with the agent that is to take it.

  Args:
    folder: Step folder, for the message.
    run: Run state of the step.
    shapes: Its agent, from `layout.read_shapes`.
    abstract: Tree of `jax.ShapeDtypeStruct` of the agent state.
    config: Nested configuration of this run.

  Raises:
    UserError: The step is of another task, or its arrays differ.
  """
  arrays = tree_differences(layout.flatten(shapes), layout.flatten(abstract))
  keys = []
  if config is not None:
    keys = config_differences(run.get('config', {}), config)
  if arrays or any(key.startswith('task ') for key in keys):
    raise _mismatch(folder, keys, arrays)


def _restore_carry(folder: epath.Path, abstract: Any) -> Any:
  if abstract is None or not (folder / layout.CARRY).exists():
    return None
  shapes = layout.read_shapes(folder, layout.CARRY)
  wanted = layout.flatten(abstract)
  if tree_differences(layout.flatten(shapes), wanted):
    return None  # E.g. another batch size, for which sequences start over.
  loaded = layout.load_arrays(folder, shapes, wanted, layout.CARRY)
  return layout.unflatten(loaded, abstract)


def _mismatch(
  folder: epath.Path, keys: list[str], arrays: list[str]
) -> UserError:
  named = {'config': keys, 'arrays': arrays}
  parts = [f'{kind} {shorten(items)}' for kind, items in named.items() if items]
  return UserError(
    f"Checkpoint '{folder}' does not fit this configuration: "
    f'{" | ".join(parts)}. Use its configuration (config.json) or another '
    'logdir.'
  )


def restore_newest(
  directory: epath.Path,
  attempt: Callable[[int], T],
  gather: Callable[[str], Sequence[str]],
) -> T:
  """Restores the newest step that no process finds corrupt.

  Newer, corrupt steps are quarantined as `STEP.damaged`; the replay chunks
  that they name are kept with them. If no step can be restored, nothing
  changes. A step that does not fit the configuration is an error.

  Args:
    directory: Folder of the steps.
    attempt: Restores a step; all processes call it for the same steps.
    gather: Returns the values of all processes, once all have called it.

  Returns:
    The value that `attempt` returns.

  Raises:
    UserError: The step does not fit, or no step can be read.
  """
  steps = [
    step
    for step in layout.committed_steps(directory)
    if layout.has_replay(directory / str(step))
  ]
  corrupt: list[int] = []
  for step in reversed(steps):
    error = ''
    try:
      result = attempt(step)
    except (layout.CorruptCheckpoint, ReplayCorrupt) as caught:
      error = str(caught)
    error = next(filter(None, gather(error)), '')
    if not error:
      if jax.process_index() == 0:
        for newer in corrupt:
          _quarantine(directory / str(newer))
      gather('')
      return result
    logging.warning('%s', error)
    if step != steps[0]:
      logging.warning('Falling back from step %d to the previous one.', step)
    corrupt.append(step)
  agents = [x for x in layout.steps(directory) if x not in corrupt]
  if agents:
    raise UserError(
      f"Cannot resume from any step in '{directory}': {corrupt} are corrupt, "
      f'{agents} hold an agent but no replay. Start a new logdir with '
      f"run.from_checkpoint='{directory / str(agents[-1])}', or bring back a "
      'copy.'
    )
  raise UserError(
    f"Cannot read any step in '{directory}': {corrupt} are corrupt. Bring back "
    'a copy, or start a new logdir.'
  )


def _quarantine(folder: epath.Path) -> None:
  """Renames a corrupt step, so that Orbax does not see it as one."""
  name = f'{folder.name}.{layout.QUARANTINED}'
  earlier = len(list(folder.parent.glob(f'{name}*')))
  target = folder.with_name(f'{name}{earlier + 1 if earlier else ""}')
  folder.rename(target)
  logging.warning(
    "Quarantined the corrupt checkpoint as '%s'; delete it when you no longer "
    'need it.',
    target,
  )


def config_differences(
  saved: Mapping[str, Any], current: Mapping[str, Any]
) -> list[str]:
  """Returns differing config keys as 'KEY is NEW, was OLD'.

  Args:
    saved: Nested config of the checkpoint, as read from JSON.
    current: Nested config of this run.
  """
  return [
    f'{name} is {new}, was {old}'
    for name, (old, new) in config_changes(saved, current).items()
  ]


def config_changes(
  saved: Mapping[str, Any], current: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
  """Returns the old and the new value of differing config keys, as text.

  Keys that shape the agent come first; in each group, those that the checkpoint
  lacks come last. A missing value is 'absent'.

  Args:
    saved: Nested config of the checkpoint, as read from JSON.
    current: Nested config of this run.
  """
  current = json.loads(json.dumps(current, default=str))
  old, new = flatten(saved), flatten(current)
  names = [k for k in {**old, **new} if old.get(k) != new.get(k)]

  def rank(name: str) -> tuple[int, bool, str]:
    group = name.split('.')[0]
    return (*_GROUPS, group).index(group), name not in old, name

  def show(flat: Mapping[str, Any], name: str) -> str:
    return repr(flat[name]) if name in flat else 'absent'

  return {
    name: (show(old, name), show(new, name)) for name in sorted(names, key=rank)
  }


def tree_differences(
  saved: Mapping[str, Any], wanted: Mapping[str, Any]
) -> list[str]:
  """Returns differing arrays: first those that changed, then those missing.

  Args:
    saved: Objects with `shape` and `dtype` by name, from the checkpoint.
    wanted: Likewise, from the agent.
  """
  old = {k: f'{v.dtype}{list(v.shape)}' for k, v in saved.items()}
  new = {k: f'{v.dtype}{list(v.shape)}' for k, v in wanted.items()}
  return [
    *(
      f'{k} is {new[k]}, was {old[k]}'
      for k in new
      if k in old and new[k] != old[k]
    ),
    *(f'{k} {new[k]} is not in the checkpoint' for k in new if k not in old),
    *(f'{k} {old[k]} is only in the checkpoint' for k in old if k not in new),
  ]


def shorten(items: Sequence[str], limit: int = 3) -> str:
  """Joins the first few items in one line, and counts the others."""
  more = f' and {len(items) - limit} more' if len(items) > limit else ''
  return '; '.join(items[:limit]) + more
