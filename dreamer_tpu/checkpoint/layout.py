"""File layout of checkpoints, and functions that read them.

`checkpoints/STEP/` holds `agent` and `carry` (arrays in Orbax's own format),
`run/data.json` and one replay manifest per process, `replay/PROCESS.json`. A
step that is kept for its agent only has a file `replay/released` instead.
`STEP.damaged` is a corrupt step in quarantine.
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from dreamer_tpu import paths
from dreamer_tpu.checkpoint import checksums
from dreamer_tpu.errors import UserError

T = TypeVar('T')

AGENT = 'agent'
CARRY = 'carry'
RUN = 'run'
REPLAY = 'replay'
RUN_FILE = 'data.json'
REPLAY_DROPPED = 'released'
QUARANTINED = 'damaged'
SCORE = 'score'
_COMMITTED = ('_CHECKPOINT_METADATA', 'commit_success.txt')


class CorruptCheckpoint(UserError):
  """Files of a step are missing, truncated or changed."""


class NoCheckpoint(UserError):
  """A path holds no checkpoint."""


def absolute(path: epath.PathLike) -> epath.Path:
  """Returns the absolute path that Orbax needs, with `~` expanded."""
  full = epath.Path(path).expanduser()
  return full.absolute() if paths.is_local(full) else full


def is_step(path: epath.Path) -> bool:
  """Returns whether `path` is the folder of a committed step."""
  return all((path / name).exists() for name in _COMMITTED)


def steps(directory: epath.PathLike) -> list[int]:
  """Returns the steps that Orbax can open in `checkpoints/`, ascending."""
  root = absolute(directory)
  if not root.is_dir():
    return []
  names = [path.name for path in root.iterdir()]
  found = sorted(int(name) for name in names if name.isdecimal())
  return [step for step in found if is_step(root / str(step))]


def committed_steps(directory: epath.Path) -> list[int]:
  """Returns `steps`, and those that have lost files since their commit."""
  names = [path.parent.name for path in directory.glob(f'*/{checksums.FILE}')]
  return sorted({*steps(directory), *(int(x) for x in names if x.isdecimal())})


def quarantined(directory: epath.Path) -> list[epath.Path]:
  """Returns the folders in `checkpoints/` that were quarantined."""
  return sorted(directory.glob(f'*.{QUARANTINED}*'))


def find_step(path: epath.PathLike) -> epath.Path:
  """Returns the step folder of a logdir, `checkpoints/` or a step folder.

  If `path` holds several steps, returns the newest.

  Raises:
    NoCheckpoint: There is no checkpoint at `path`.
  """
  root = absolute(path)
  if is_step(root):
    return root
  for directory in (root / 'checkpoints', root):
    if found := steps(directory):
      return directory / str(found[-1])
  raise NoCheckpoint(f"No checkpoint in '{root}': {_explain_missing(root)}")


def read_newest(
  path: epath.PathLike, read: Callable[[epath.Path], T], pause: float = 0.3
) -> T:
  """Reads the newest step, also while a running training deletes old ones.

  A step that cannot be read may be one that is being deleted: then the newest
  is another one soon.

  Args:
    path: Path as in `find_step`.
    read: Reads a step folder.
    pause: Seconds until a failed step is tried once more.

  Returns:
    The value that `read` returns.

  Raises:
    NoCheckpoint: There is no checkpoint at `path`.
    UserError: The newest step cannot be read.
  """
  failed: set[epath.Path | None] = set()
  while True:
    step = None
    try:
      step = find_step(path)
      return read(step)
    except (CorruptCheckpoint, NoCheckpoint, OSError, ValueError) as error:
      if step not in failed:
        failed.add(step)
        time.sleep(pause)
      elif step is None or isinstance(error, UserError):
        raise
      else:
        raise unreadable(step, error) from error


def _explain_missing(path: epath.Path) -> str:
  if path.is_dir():
    return 'it holds no committed step; give a logdir or a step folder.'
  if path.exists():
    return 'it is a file; give a logdir or a step folder.'
  parent = path.parent
  if not parent.is_dir():
    return f"the folder '{parent}' does not exist either."
  names = sorted(x.name for x in parent.iterdir() if x.is_dir())[:8]
  return f"'{parent}' holds {', '.join(names) or 'no folder'}."


def read_run(folder: epath.Path) -> dict[str, Any]:
  """Returns the run state of a step: counters, clocks, config, spaces."""
  return json.loads((folder / RUN / RUN_FILE).read_text())


def read_score(folder: epath.Path) -> float | None:
  """Returns the evaluation score of a step, if it was saved with one."""
  path = folder / 'metrics' / 'metrics'
  return json.loads(path.read_text())[SCORE] if path.exists() else None


def has_replay(folder: epath.Path) -> bool:
  """Returns whether a step still has its replay, so that a run can resume."""
  return not (folder / REPLAY / REPLAY_DROPPED).exists()


def read_manifests(folder: epath.Path) -> dict[str, Any]:
  """Returns the replay manifests of a step by process number, in order."""
  if not has_replay(folder):
    return {}
  files = (folder / REPLAY).glob('*.json')
  ordered = sorted(files, key=lambda path: int(path.stem))
  return {path.stem: json.loads(path.read_text()) for path in ordered}


def size(folder: epath.Path) -> int:
  """Returns the total size in bytes of all files in a folder."""
  total = 0
  for root, _, names in folder.walk():
    for name in names:
      # Another host may be renaming the file or removing the folder.
      with contextlib.suppress(FileNotFoundError):
        total += (root / name).stat().length
  return total


def read_shapes(folder: epath.Path, item: str = AGENT) -> Any:
  """Returns the shapes and dtypes of an item's arrays, without loading them.

  Raises:
    UserError: The step has no such item, or it is corrupt.
  """
  tree = ocp.metadata(folder, item).metadata
  if not tree:
    raise unreadable(
      folder, ValueError(f'the arrays of its {item} are corrupt')
    )
  return tree


def flatten(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by name, e.g. 'params/rssm/gru/kernel'."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {name_of(path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any], tree: Any) -> Any:
  """Returns `tree` with the named leaves replaced."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaves.get(name_of(path), leaf), tree
  )


def name_of(path: Any) -> str:
  """Returns the keys of a JAX key path joined by '/'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def load_arrays(
  folder: epath.Path,
  shapes: Any,
  wanted: Mapping[str, jax.ShapeDtypeStruct],
  item: str = AGENT,
) -> dict[str, jax.Array]:
  """Reads the named arrays of an item, and no others, from disk.

  Every process reads its own shards without waiting for the others.

  Args:
    folder: Step folder.
    shapes: Tree of the whole item, from `read_shapes`.
    wanted: Dtypes and shardings of the results by name; the default sharding
      is the first local device.
    item: Item of the step.

  Returns:
    The arrays by name.

  Raises:
    UserError: The files are corrupt.
  """
  if not wanted:
    return {}

  def target(path, _):
    leaf = wanted.get(name_of(path))
    if leaf is None:
      return ocp.PLACEHOLDER
    return jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding_of(leaf)
    )

  targets = jax.tree_util.tree_map_with_path(target, shapes)
  try:
    with _without_barriers():
      tree = ocp.load_checkpointables(folder, {item: targets})[item]
  except (jax.errors.JaxRuntimeError, MemoryError):
    raise  # Not caused by the files.
  except Exception as error:  # Orbax raises plain `Exception` too.
    raise unreadable(folder, error) from error
  flat = flatten(tree)
  arrays = {name: flat[name] for name in wanted}
  missing = [k for k, v in arrays.items() if not isinstance(v, jax.Array)]
  if missing:
    raise unreadable(folder, ValueError(f'no data for {missing[0]}'))
  return arrays


def sharding_of(leaf: Any) -> jax.sharding.Sharding:
  """Returns the sharding of a leaf, by default the first local device."""
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return getattr(leaf, 'sharding', None) or device


def _without_barriers() -> ocp.Context:
  """Returns a context in which a failing process does not block the others."""
  context = ocp.Context()
  index = jax.process_index()
  context.multiprocessing.primary_host = index
  context.multiprocessing.active_processes = {index}
  context.multiprocessing.barrier_sync_key_prefix = f'process{index}'
  return context


def unreadable(folder: epath.Path, error: Exception) -> UserError:
  """Returns the error to raise if a step cannot be read; names other steps.

  It is a `CorruptCheckpoint`, or a plain `UserError` without permission.
  """
  others = [x for x in steps(folder.parent) if str(x) != folder.name]
  rest = f'other steps there: {others}' if others else 'there is no other step'
  kind = UserError if isinstance(error, PermissionError) else CorruptCheckpoint
  return kind(
    f"Checkpoint '{folder}' cannot be read ({one_line(error)}); {rest}."
  )


def one_line(error: BaseException) -> str:
  """Returns the root cause of an error, shortened to 200 characters."""
  while True:
    cause = error.__cause__
    if cause is None and not error.__suppress_context__:
      cause = error.__context__
    if cause is None:
      break
    error = cause
  text = str(error).partition('[tensorstore_spec=')[0]
  text = ' '.join(text.split()) or type(error).__name__
  return text if len(text) <= 200 else f'{text[:80]} ... {text[-115:]}'
