"""Where a checkpoint keeps what, read without opening a `Checkpointer`.

`checkpoints/STEP/` holds `agent` (arrays, in Orbax's own format),
`run/data.json` and `replay/SHARD.json`, one manifest per process that saved.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from dreamer_tpu.errors import UserError

AGENT = 'agent'
RUN = 'run'
REPLAY = 'replay'
RUN_FILE = 'data.json'
_COMMITTED = ('_CHECKPOINT_METADATA', 'commit_success.txt')

PathLike = str | os.PathLike


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


def read_manifests(folder: epath.Path) -> dict[str, Any]:
  """Replay manifests of a step folder by shard name, in the shards' order."""
  paths = (folder / REPLAY).glob('*.json')
  ordered = sorted(paths, key=lambda path: int(path.stem))
  return {path.stem: json.loads(path.read_text()) for path in ordered}


def size(folder: epath.Path) -> int:
  """Bytes in all files below a folder."""
  return sum(
    (root / name).stat().length
    for root, _, names in folder.walk()
    for name in names
  )


def read_shapes(folder: epath.Path) -> Any:
  """The agent's tree with the shape and dtype of every array, none loaded.

  Raises:
    UserError: The step holds no readable agent.
  """
  tree = ocp.metadata(folder, AGENT).metadata
  if not tree:
    raise damaged(folder, ValueError('the arrays of its agent are damaged'))
  return tree


def flatten(tree: Any) -> dict[str, Any]:
  """Leaves of a tree by name, such as 'params/rssm/gru/kernel'."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {name_of(path): leaf for path, leaf in leaves}


def name_of(path: Any) -> str:
  """The name of a JAX key path: its keys joined by '/'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def load_arrays(
  folder: epath.Path, shapes: Any, wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
  """Reads the named arrays of the agent, and nothing else, from disk.

  Args:
    folder: A step folder.
    shapes: The agent's whole tree from `read_shapes`.
    wanted: By name, the dtype and sharding to arrive in (the first local
      device where a sharding is absent).

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
    agent = ocp.load_checkpointables(folder, {AGENT: targets})[AGENT]
  except (ValueError, OSError, RuntimeError, KeyError) as error:
    raise damaged(folder, error) from error
  flat = flatten(agent)
  arrays = {name: flat[name] for name in wanted}
  absent = [k for k, v in arrays.items() if not isinstance(v, jax.Array)]
  if absent:
    raise damaged(folder, ValueError(f'no data for {absent[0]}'))
  return arrays


def damaged(folder: epath.Path, error: Exception) -> UserError:
  """The error of a step whose files cannot be read, naming older steps."""
  older = [x for x in steps(folder.parent) if str(x) != folder.name]
  way = f'other steps there: {older}' if older else 'there is no other step'
  return UserError(
    f"Checkpoint '{folder}' cannot be read ({one_line(error)}); {way}."
  )


def one_line(error: BaseException) -> str:
  """The first cause of an error in at most 200 characters."""
  while True:
    cause = error.__cause__
    if cause is None and not error.__suppress_context__:
      cause = error.__context__
    if cause is None:
      break
    error = cause
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= 200 else text[:197] + '...'
