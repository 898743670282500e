"""Restores part of an agent, chosen by name, from any checkpoint."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
from etils import epath

from dreamer_tpu.checkpoint import layout
from dreamer_tpu.checkpoint.dreamerv3 import unpickle
from dreamer_tpu.checkpoint.restore import shorten
from dreamer_tpu.errors import UserError

_Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """Names of parameters by what happened to them, in the agent's order.

  Attributes:
    loaded: Taken from the checkpoint.
    kept: Not chosen.
    differing: Chosen, but of another shape in the checkpoint; both shapes
      follow the name.
    missing: Chosen, but not in the checkpoint.
    unused: Chosen and in the checkpoint, but not part of the agent.
  """

  loaded: tuple[str, ...]
  kept: tuple[str, ...]
  differing: tuple[str, ...]
  missing: tuple[str, ...]
  unused: tuple[str, ...]

  def lines(self) -> list[str]:
    """Returns one readable line per kind."""
    kinds = {
      'Loaded': self.loaded,
      'Left alone': self.kept,
      'Fresh, of another shape in the checkpoint': self.differing,
      'Missing in the checkpoint': self.missing,
      'Only in the checkpoint': self.unused,
    }
    return [
      f'{kind} ({len(names)}): {", ".join(names) or "none"}'
      for kind, names in kinds.items()
    ]


@dataclasses.dataclass(frozen=True)
class _Source:
  """An open checkpoint.

  Attributes:
    arrays: Objects with `shape` by our names.
    parameters: Names of `arrays` that are parameters of an agent.
    aliases: Alternative names by our names.
    load: Reads arrays, given leaves with dtype and sharding by our names.
  """

  arrays: _Tree
  parameters: Collection[str]
  aliases: Mapping[str, str]
  load: Callable[[_Tree], dict[str, jax.Array]]


def check_exists(path: epath.PathLike) -> None:
  """Raises UserError if a path of `restore_partial` holds no checkpoint."""
  if unpickle.find(path) is None:
    layout.find_step(path)


def restore_partial(
  path: epath.PathLike, regex: str, params: Any, mismatch: str = 'error'
) -> tuple[Any, Report]:
  """Replaces the chosen parameters by those of a checkpoint.

  Args:
    path: Logdir, checkpoints folder, step folder, or folder with agent.pkl of
      the public implementation.
    regex: Pattern that fully matches the names of the chosen parameters, such
      as 'rssm/gru/kernel', or their names up to a '/': 'rssm' chooses the
      whole RSSM. Names of the public implementation work for its checkpoints
      ('enc|dyn|dec').
    params: Tree of arrays, or of `jax.ShapeDtypeStruct` with shardings, named
      like the agent's parameters. It may also hold `slow_value`, `retnorm`
      and `opt`.
    mismatch: Treatment of chosen leaves of another shape in the checkpoint:
      'error' refuses them, 'fresh' leaves them alone.

  Returns:
    The tree, whose loaded leaves have the dtype and sharding of the given ones,
    and a report. Other leaves are returned as given.

  Raises:
    UserError: There is no checkpoint, the pattern is invalid or matches
      nothing, shapes differ, or nothing is left to load.
  """
  folder = unpickle.find(path)
  if folder is not None:
    return _restore(path, _open_public(folder), regex, params, mismatch)
  return layout.read_newest(
    path, lambda step: _restore(path, _open(step), regex, params, mismatch)
  )


def _restore(
  path: epath.PathLike, source: _Source, regex: str, params: Any, mismatch: str
) -> tuple[Any, Report]:
  """Restores from an open checkpoint; see `restore_partial`."""
  wanted = layout.flatten(params)
  matches = _matcher(regex, source.aliases)
  chosen = [name for name in wanted if matches(name)]
  if not chosen:
    modules = sorted({name.split('/')[0] for name in wanted})
    raise UserError(
      f"The pattern '{regex}' matches no parameter; those of the agent are in "
      f'{", ".join(modules)}.'
    )
  missing = [name for name in chosen if name not in source.arrays]
  found = [name for name in chosen if name in source.arrays]
  differing = {
    name: f'{name} {list(wanted[name].shape)} here, {list(shape)} there'
    for name in found
    if (shape := tuple(source.arrays[name].shape)) != wanted[name].shape
  }
  if differing and mismatch == 'error':
    raise UserError(
      f"Parameters of '{path}' have other shapes than the agent: "
      f'{shorten(list(differing.values()))}; choose others with '
      '--config.run.from_checkpoint_regex, start these fresh with '
      '--config.run.from_checkpoint_mismatch=fresh, or use the configuration '
      'of the checkpoint.'
    )
  fitting = [name for name in found if name not in differing]
  if not fitting:
    raise UserError(f"Nothing to load from '{path}' with '{regex}'.")
  loaded = source.load({name: wanted[name] for name in fitting})
  unused = [name for name in source.parameters if name not in wanted]
  report = Report(
    loaded=tuple(fitting),
    kept=tuple(name for name in wanted if name not in set(chosen)),
    differing=tuple(differing.values()),
    missing=tuple(missing),
    unused=tuple(name for name in unused if matches(name)),
  )
  return layout.unflatten(loaded, params), report


def _open(step: epath.Path) -> _Source:
  shapes = layout.read_shapes(step)
  saved = layout.flatten(shapes)
  paths = {name.removeprefix('params/'): name for name in saved}

  def load(wanted: _Tree) -> dict[str, jax.Array]:
    targets = {paths[name]: leaf for name, leaf in wanted.items()}
    arrays = layout.load_arrays(step, shapes, targets)
    return {name: arrays[paths[name]] for name in wanted}

  arrays = {name: saved[path] for name, path in paths.items()}
  parameters = [name for name, path in paths.items() if name != path]
  return _Source(arrays, parameters, {}, load)


def _open_public(folder: epath.Path) -> _Source:
  checkpoint = unpickle.load(folder)
  arrays = checkpoint.params

  def load_one(name: str, leaf: Any) -> jax.Array:
    value = arrays[name].astype(leaf.dtype)
    return jax.make_array_from_callback(
      value.shape, layout.sharding_of(leaf), lambda index: value[index]
    )

  def load(wanted: _Tree) -> dict[str, jax.Array]:
    return {name: load_one(name, leaf) for name, leaf in wanted.items()}

  return _Source(arrays, arrays.keys(), checkpoint.public, load)


def _matcher(regex: str, aliases: Mapping[str, str]) -> Callable[[str], bool]:
  """Returns a function that tests a name, and all modules that it is in."""
  try:
    pattern = re.compile(regex)
  except re.error as error:
    raise UserError(
      f"'{regex}' is not a regular expression: {error}."
    ) from error

  def matches(name: str) -> bool:
    parts = [x.split('/') for x in {name, aliases.get(name, name)}]
    prefixes = ['/'.join(x[: i + 1]) for x in parts for i in range(len(x))]
    return any(pattern.fullmatch(prefix) for prefix in prefixes)

  return matches
