"""Parts of an agent, chosen by name, from any checkpoint."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dreamer_tpu.checkpoint import compare, layout
from dreamer_tpu.checkpoint.dreamerv3 import unpickle
from dreamer_tpu.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What became of each name, in the order of the agent's tree.

  Attributes:
    loaded: Taken from the checkpoint.
    left: Not chosen, and as they were.
    missing: Chosen, but not in the checkpoint.
    mismatched: Chosen, but of another shape there; each with both shapes.
    unused: Chosen by the patterns and in the checkpoint, but not wanted here.
  """

  loaded: tuple[str, ...]
  left: tuple[str, ...]
  missing: tuple[str, ...]
  mismatched: tuple[str, ...]
  unused: tuple[str, ...]

  def lines(self) -> list[str]:
    """One readable line per kind."""
    titles = {
      'loaded': 'Loaded',
      'left': 'Left alone',
      'missing': 'Missing in the checkpoint',
      'mismatched': 'Mismatched',
      'unused': 'Only in the checkpoint',
    }
    return [
      f'{title} ({len(getattr(self, kind))}): '
      f'{", ".join(getattr(self, kind)) or "none"}'
      for kind, title in titles.items()
    ]


@dataclasses.dataclass(frozen=True)
class _Source:
  """An open checkpoint: what it holds by our names, and how to get it."""

  arrays: Mapping[str, Any]
  parameters: Sequence[str]
  aliases: Mapping[str, str]
  load: Callable[[Mapping[str, Any]], dict[str, jax.Array]]


def restore_partial(
  path: layout.PathLike,
  regex: str | Sequence[str],
  params: Any,
  *,
  allow_mismatch: bool = False,
) -> tuple[Any, Report]:
  """Replaces the chosen parameters by those of a checkpoint.

  Args:
    path: A logdir, a checkpoints folder, a step folder, or a folder of the
      public implementation with agent.pkl.
    regex: Patterns. One chooses a parameter if it matches in full its name,
      such as 'rssm/gru/kernel', or the beginning of its name up to a '/', so
      that 'rssm' means all of it. Names of a public checkpoint may be meant
      too ('enc|dyn|dec').
    params: Tree of arrays, or of `jax.ShapeDtypeStruct` with shardings, named
      as the agent's parameters; `slow_value`, `retnorm` and `opt` are taken
      from beside the parameters where the tree has them.
    allow_mismatch: Leave parameters of another shape alone and list them,
      instead of raising.

  Returns:
    The tree with the chosen leaves loaded, in the dtype and sharding of the
    given ones, all other leaves being the given ones; and a report.

  Raises:
    UserError: There is no checkpoint, a pattern is invalid or matches
      nothing, shapes differ, nothing is left to load, or a chosen leaf is
      missing for which `params` has only a shape.
  """
  source = _open(path)
  wanted = layout.flatten(params)
  patterns = _compile([regex] if isinstance(regex, str) else list(regex))
  chosen = _choose(patterns, wanted, source)
  missing = [name for name in chosen if name not in source.arrays]
  common = [name for name in chosen if name in source.arrays]
  differ = [
    name
    for name in common
    if tuple(source.arrays[name].shape) != tuple(wanted[name].shape)
  ]
  mismatched = [
    f'{name} {list(wanted[name].shape)} here, '
    f'{list(source.arrays[name].shape)} there'
    for name in differ
  ]
  _check(path, wanted, missing, mismatched, allow_mismatch)
  names = [name for name in common if name not in set(differ)]
  if not names:
    raise UserError(f"Nothing to load from '{path}' with {_show(patterns)}.")
  loaded = source.load({name: wanted[name] for name in names})
  spare = [name for name in source.parameters if name not in wanted]
  report = Report(
    loaded=tuple(names),
    left=tuple(name for name in wanted if name not in set(chosen)),
    missing=tuple(missing),
    mismatched=tuple(mismatched),
    unused=tuple(x for x in spare if _matches(patterns, x, source.aliases)),
  )
  tree = jax.tree_util.tree_map_with_path(
    lambda path, leaf: loaded.get(layout.name_of(path), leaf), params
  )
  return tree, report


def _open(path: layout.PathLike) -> _Source:
  folder = unpickle.find(path)
  if folder is not None:
    return _open_public(folder)
  step = layout.find_step(path)
  shapes = layout.read_shapes(step)
  saved = layout.flatten(shapes)
  places = {name.removeprefix('params/'): name for name in saved}
  parameters = [k for k, v in places.items() if k != v]

  def load(wanted):
    targets = {places[name]: leaf for name, leaf in wanted.items()}
    arrays = layout.load_arrays(step, shapes, targets)
    return {name: arrays[places[name]] for name in wanted}

  arrays = {k: saved[v] for k, v in places.items()}
  return _Source(arrays, parameters, {}, load)


def _open_public(folder) -> _Source:
  checkpoint = unpickle.load(folder)

  def load(wanted):
    return {
      name: _place(checkpoint.params[name], leaf)
      for name, leaf in wanted.items()
    }

  arrays = checkpoint.params
  return _Source(arrays, list(arrays), checkpoint.public, load)


def _place(value: np.ndarray, leaf: Any) -> jax.Array:
  value = value.astype(leaf.dtype)
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    return jax.device_put(value)
  return jax.make_array_from_callback(
    value.shape, sharding, lambda index: value[index]
  )


def _compile(patterns: list[str]) -> list[re.Pattern]:
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


def _choose(patterns, wanted, source: _Source) -> list[str]:
  """Names of the tree that some pattern matches; each must match one."""
  for pattern in patterns:
    if not any(_matches([pattern], name, source.aliases) for name in wanted):
      tops = sorted({name.split('/')[0] for name in wanted})
      raise UserError(
        f"The pattern '{pattern.pattern}' matches no parameter; those of the "
        f'agent are in {", ".join(tops)}.'
      )
  return [x for x in wanted if _matches(patterns, x, source.aliases)]


def _matches(
  patterns: list[re.Pattern], name: str, aliases: Mapping[str, str]
) -> bool:
  both = [name, aliases[name]] if name in aliases else [name]
  starts = [start for x in both for start in _starts(x)]
  return any(p.fullmatch(start) for p in patterns for start in starts)


def _starts(name: str) -> list[str]:
  parts = name.split('/')
  return ['/'.join(parts[: i + 1]) for i in range(len(parts))]


def _check(path, wanted, missing, mismatched, allow_mismatch) -> None:
  if mismatched and not allow_mismatch:
    raise UserError(
      f"Parameters of '{path}' have other shapes than the agent: "
      f'{compare.first(mismatched)}; choose others by the pattern or use its '
      'configuration.'
    )
  bare = [x for x in missing if isinstance(wanted[x], jax.ShapeDtypeStruct)]
  if bare:
    raise UserError(
      f"'{path}' lacks parameters that the agent needs: {compare.first(bare)}."
    )


def _show(patterns: list[re.Pattern]) -> str:
  return ', '.join(f"'{p.pattern}'" for p in patterns)
