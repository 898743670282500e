"""Restores part of an agent, chosen by name, from any checkpoint."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

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
    missing: Chosen, but not in the checkpoint.
    unused: Chosen and in the checkpoint, but not part of the agent.
  """

  loaded: tuple[str, ...]
  kept: tuple[str, ...]
  missing: tuple[str, ...]
  unused: tuple[str, ...]

  def lines(self) -> list[str]:
    """Returns one readable line per kind."""
    kinds = {
      'Loaded': self.loaded,
      'Left alone': self.kept,
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


def restore_partial(
  path: layout.PathLike, regex: str | Sequence[str], params: Any
) -> tuple[Any, Report]:
  """Replaces the chosen parameters by those of a checkpoint.

  Args:
    path: Logdir, checkpoints folder, step folder, or folder with agent.pkl of
      the public implementation.
    regex: Patterns. A pattern chooses a parameter if it fully matches its
      name, such as 'rssm/gru/kernel', or the name up to a '/': 'rssm' chooses
      the whole RSSM. Names of the public implementation work for its
      checkpoints ('enc|dyn|dec').
    params: Tree of arrays, or of `jax.ShapeDtypeStruct` with shardings, named
      like the agent's parameters. It may also hold `slow_value`, `retnorm`
      and `opt`.

  Returns:
    The tree, whose chosen leaves are loaded in the dtype and sharding of the
    given ones, and a report.

  Raises:
    UserError: There is no checkpoint, a pattern is invalid or matches
      nothing, shapes differ, nothing is left to load, or a chosen leaf is
      missing of which `params` has only the shape.
  """
  source = _open(path)
  wanted = layout.flatten(params)
  patterns = _compile([regex] if isinstance(regex, str) else regex)
  chosen = _choose(patterns, wanted, source)
  missing = [name for name in chosen if name not in source.arrays]
  found = [name for name in chosen if name in source.arrays]
  _check(path, wanted, source, found, missing)
  if not found:
    shown = ', '.join(f"'{x.pattern}'" for x in patterns)
    raise UserError(f"Nothing to load from '{path}' with {shown}.")
  loaded = source.load({name: wanted[name] for name in found})
  spare = [name for name in source.parameters if name not in wanted]
  report = Report(
    loaded=tuple(found),
    kept=tuple(name for name in wanted if name not in set(chosen)),
    missing=tuple(missing),
    unused=tuple(x for x in spare if _matches(patterns, x, source.aliases)),
  )
  return layout.unflatten(loaded, params), report


def _open(path: layout.PathLike) -> _Source:
  folder = unpickle.find(path)
  if folder is not None:
    return _open_public(folder)
  step = layout.find_step(path)
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


def _open_public(folder: layout.PathLike) -> _Source:
  checkpoint = unpickle.load(folder)
  arrays = checkpoint.params

  def load(wanted: _Tree) -> dict[str, jax.Array]:
    return {k: _to_device(arrays[k], leaf) for k, leaf in wanted.items()}

  return _Source(arrays, arrays.keys(), checkpoint.public, load)


def _to_device(value: np.ndarray, leaf: Any) -> jax.Array:
  value = value.astype(leaf.dtype)
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    return jax.device_put(value)
  return jax.make_array_from_callback(
    value.shape, sharding, lambda index: value[index]
  )


def _compile(patterns: Sequence[str]) -> list[re.Pattern]:
  compiled = []
  for pattern in patterns:
    try:
      compiled.append(re.compile(pattern))
    except re.error as error:
      raise UserError(
        f"'{pattern}' is not a regular expression: {error}."
      ) from error
  if not compiled:
    raise UserError("No pattern to choose parameters by; '.*' means all.")
  return compiled


def _choose(
  patterns: list[re.Pattern], wanted: _Tree, source: _Source
) -> list[str]:
  """Returns the names that some pattern matches; each must match one."""
  for pattern in patterns:
    if not any(_matches([pattern], name, source.aliases) for name in wanted):
      modules = sorted({name.split('/')[0] for name in wanted})
      raise UserError(
        f"The pattern '{pattern.pattern}' matches no parameter; those of the "
        f'agent are in {", ".join(modules)}.'
      )
  return [x for x in wanted if _matches(patterns, x, source.aliases)]


def _matches(
  patterns: list[re.Pattern], name: str, aliases: Mapping[str, str]
) -> bool:
  """Returns whether a pattern matches a name, or a module that it is in."""
  parts = [x.split('/') for x in {name, aliases.get(name, name)}]
  prefixes = ['/'.join(x[: i + 1]) for x in parts for i in range(len(x))]
  return any(p.fullmatch(prefix) for p in patterns for prefix in prefixes)


def _check(
  path: layout.PathLike,
  wanted: _Tree,
  source: _Source,
  found: list[str],
  missing: list[str],
) -> None:
  pairs = [
    (k, list(wanted[k].shape), list(source.arrays[k].shape)) for k in found
  ]
  differ = [
    f'{k} {new} here, {old} there' for k, new, old in pairs if new != old
  ]
  if differ:
    raise UserError(
      f"Parameters of '{path}' have other shapes than the agent: "
      f'{shorten(differ)}; choose others by the pattern or use its '
      'configuration.'
    )
  bare = [x for x in missing if isinstance(wanted[x], jax.ShapeDtypeStruct)]
  if bare:
    raise UserError(
      f"'{path}' lacks parameters that the agent needs: {shorten(bare)}."
    )
