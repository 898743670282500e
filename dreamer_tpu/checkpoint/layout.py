"""Where a checkpoint keeps what, read without opening a `Checkpointer`.

`checkpoints/STEP/` holds `agent` (arrays, in Orbax's own format), `carry` (the
same, of sequences that are trained in parts), `run/data.json` and
`replay/SHARD.json`, one manifest per process that saved. A step that is kept
for its agent alone has `replay/released` instead. `STEP.damaged` is a step
that could not be read and was put aside.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from dreamer_tpu.checkpoint import checksums
from dreamer_tpu.errors import UserError

AGENT = 'agent'
CARRY = 'carry'
RUN = 'run'
REPLAY = 'replay'
RUN_FILE = 'data.json'
RELEASED = 'released'
ASIDE = 'damaged'
SCORE = 'score'
_COMMITTED = ('_CHECKPOINT_METADATA', 'commit_success.txt')

PathLike = str | os.PathLike


class Damaged(UserError):
  """A step that cannot be read as it was written."""


def absolute(path: PathLike) -> epath.Path:
  """The path as Orbax wants it: absolute, `~` replaced."""
  whole = epath.Path(path).expanduser()
  return whole if '://' in str(whole) else whole.absolute()


def is_step(path: epath.Path) -> bool:
  """Whether `path` is a committed step folder."""
  return all((path / name).exists() for name in _COMMITTED)


def steps(directory: PathLike) -> list[int]:
  """Committed steps in `checkpoints/`, ascending; [] if there is none."""
  root = absolute(directory)
  if not root.is_dir():
    return []
  names = [path.name for path in root.iterdir()]
  found = sorted(int(name) for name in names if name.isdecimal())
  return [step for step in found if is_step(root / str(step))]


def traces(directory: epath.Path) -> list[int]:
  """Steps that were committed once, also if they have lost files, ascending."""
  whole = steps(directory)
  names = [path.parent.name for path in directory.glob(f'*/{checksums.FILE}')]
  return sorted({*whole, *(int(x) for x in names if x.isdecimal())})


def find_step(path: PathLike) -> epath.Path:
  """The step folder meant by a logdir, `checkpoints/` or a step folder.

  Returns:
    The newest committed step where `path` holds several.

  Raises:
    UserError: There is no checkpoint at `path`.
  """
  root = absolute(path)
  if is_step(root):
    return root
  for directory in (root / 'checkpoints', root):
    if found := steps(directory):
      return directory / str(found[-1])
  raise UserError(f"No checkpoint in '{root}': {_near(root)}")


def _near(path: epath.Path) -> str:
  if path.is_dir():
    return 'it holds no committed step; give a logdir or a step folder.'
  if path.exists():
    return 'it is a file; give a logdir or a step folder.'
  parent = path.parent
  if not parent.is_dir():
    return f"there is no folder '{parent}' either."
  names = sorted(x.name for x in parent.iterdir() if x.is_dir())[:8]
  return f"'{parent}' holds {', '.join(names) or 'no folder'}."


def read_run(folder: epath.Path) -> dict[str, Any]:
  """The run state of a step folder: counters, clocks, config, spaces."""
  return json.loads((folder / RUN / RUN_FILE).read_text())


def read_score(folder: epath.Path) -> float | None:
  """The score by which a step may be among the best, if it has one."""
  path = folder / 'metrics' / 'metrics'
  return json.loads(path.read_text())[SCORE] if path.exists() else None


def has_replay(folder: epath.Path) -> bool:
  """Whether a step still names its replay, from which a run can go on."""
  return not (folder / REPLAY / RELEASED).exists()


def aside(directory: epath.Path) -> list[epath.Path]:
  """Folders of steps in `checkpoints/` that were put aside."""
  return sorted(directory.glob(f'*.{ASIDE}*'))


def read_manifests(folder: epath.Path) -> dict[str, Any]:
  """Replay manifests of a step folder by shard name, in the shards' order."""
  if not has_replay(folder):
    return {}
  paths = (folder / REPLAY).glob('*.json')
  ordered = sorted(paths, key=lambda path: int(path.stem))
  return {path.stem: json.loads(path.read_text()) for path in ordered}


def size(folder: epath.Path) -> int:
  """Bytes in all files below a folder."""
  total = 0
  for root, _, names in folder.walk():
    for name in names:
      # Another host may just be renaming it, or removing the folder.
      with contextlib.suppress(FileNotFoundError):
        total += (root / name).stat().length
  return total


def read_shapes(folder: epath.Path, item: str = AGENT) -> Any:
  """An item's tree with the shape and dtype of every array, none loaded.

  Raises:
    UserError: The step holds no such item that can be read.
  """
  tree = ocp.metadata(folder, item).metadata
  if not tree:
    raise damaged(folder, ValueError(f'the arrays of its {item} are damaged'))
  return tree


def flatten(tree: Any) -> dict[str, Any]:
  """Leaves of a tree by name, such as 'params/rssm/gru/kernel'."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {name_of(path): leaf for path, leaf in leaves}


def name_of(path: Any) -> str:
  """The name of a JAX key path: its keys joined by '/'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def load_arrays(
  folder: epath.Path,
  shapes: Any,
  wanted: Mapping[str, jax.ShapeDtypeStruct],
  item: str = AGENT,
) -> dict[str, jax.Array]:
  """Reads the named arrays of an item, and nothing else, from disk.

  Every process reads its own shards and waits for no other one.

  Args:
    folder: A step folder.
    shapes: The item's whole tree from `read_shapes`.
    wanted: By name, the dtype and sharding to arrive in (the first local
      device where a sharding is absent).
    item: Of the step.

  Returns:
    The arrays by name.

  Raises:
    UserError: The files are damaged.
  """
  if not wanted:
    return {}
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def target(path, _):
    leaf = wanted.get(name_of(path))
    if leaf is None:
      return ocp.PLACEHOLDER
    sharding = getattr(leaf, 'sharding', None) or device
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  targets = jax.tree_util.tree_map_with_path(target, shapes)
  try:
    with _alone():
      tree = ocp.load_checkpointables(folder, {item: targets})[item]
  except (jax.errors.JaxRuntimeError, MemoryError):
    raise  # Not the fault of the files.
  except Exception as error:  # Orbax raises bare ones too.
    raise damaged(folder, error) from error
  flat = flatten(tree)
  arrays = {name: flat[name] for name in wanted}
  absent = [k for k, v in arrays.items() if not isinstance(v, jax.Array)]
  if absent:
    raise damaged(folder, ValueError(f'no data for {absent[0]}'))
  return arrays


def _alone() -> ocp.Context:
  """A context without barriers: a process that fails holds up no other."""
  context = ocp.Context()
  index = jax.process_index()
  context.multiprocessing.primary_host = index
  context.multiprocessing.active_processes = {index}
  context.multiprocessing.barrier_sync_key_prefix = f'process{index}'
  return context


def damaged(folder: epath.Path, error: Exception) -> UserError:
  """The error of a step whose files cannot be read, naming the other steps.

  Returns:
    `Damaged`, or a plain `UserError` if reading is not permitted.
  """
  older = [x for x in steps(folder.parent) if str(x) != folder.name]
  way = f'other steps there: {older}' if older else 'there is no other step'
  kind = UserError if isinstance(error, PermissionError) else Damaged
  return kind(
    f"Checkpoint '{folder}' cannot be read ({one_line(error)}); {way}."
  )


def one_line(error: BaseException) -> str:
  """The first cause of an error, its beginning and its end, in 200 letters."""
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
