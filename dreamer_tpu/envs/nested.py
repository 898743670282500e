"""Nested spaces, made flat and sent as JSON.

The leaves of Dict and Tuple spaces get one name, with keys joined by '/'; the
keys of a Tuple are 0, 1, ...
"""

from collections.abc import Collection, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import (
  Box,
  Dict,
  Discrete,
  MultiBinary,
  MultiDiscrete,
  Tuple,
)

from dreamer_tpu.errors import UserError


def flatten(space: gymnasium.Space, key: str) -> dict[str, gymnasium.Space]:
  """Returns the leaves of a space by name; `key` names a space without parts.

  Raises:
    UserError: Two leaves share a name, there is no leaf, or it is no space.
  """
  if not isinstance(space, gymnasium.Space):
    kind = f'{type(space).__module__}.{type(space).__name__}'
    raise UserError(
      f'the space of {key!r} is a {kind}, not a space of Gymnasium: use those '
      'of gymnasium.spaces'
    )
  leaves = _leaves(space, key)
  if not leaves:
    raise UserError(f'a {type(space).__name__} space is empty')
  return leaves


def _leaves(space: gymnasium.Space, key: str) -> dict[str, gymnasium.Space]:
  """Returns the leaves of a space; of an empty Dict or Tuple none."""
  children = parts(space)
  if children is None:
    return {key: space}
  leaves: dict[str, gymnasium.Space] = {}
  for name, child in children.items():
    for suffix, leaf in _leaves(child, '').items():
      path = f'{name}/{suffix}' if suffix else name
      if path in leaves:
        raise UserError(f'two parts of a Dict space are named {path!r}')
      leaves[path] = leaf
  return leaves


def paths(space: gymnasium.Space, key: str) -> dict[str, tuple[Any, ...]]:
  """Returns the keys that lead to each leaf of a value, by the leaf's name."""
  items: list[tuple[Any, str, gymnasium.Space]]
  if isinstance(space, Dict):
    items = [(k, str(k), child) for k, child in space.spaces.items()]
  elif isinstance(space, Tuple):
    items = [(i, str(i), child) for i, child in enumerate(space.spaces)]
  else:
    return {key: ()}
  return {
    f'{name}/{suffix}' if suffix else name: (own, *rest)
    for own, name, child in items
    for suffix, rest in paths(child, '').items()
  }


def flatten_value(
  space: gymnasium.Space, value: Any, key: str, names: Collection[str]
) -> dict[str, Any]:
  """Returns some parts of a value of `space`.

  Args:
    space: Space of the value.
    value: A value or a batch of values.
    key: Name of a space without parts.
    names: Leaves to return, by the names of `flatten`. Others may be missing.

  Raises:
    ValueError: A part is missing.
  """
  children = parts(space)
  if children is None:
    return {key: value} if key in names else {}
  result: dict[str, Any] = {}
  given = _part_values(space, value, children)
  for name, child in children.items():
    # A leaf is named '' within itself.
    inside = {
      x[len(name) + 1 :] for x in names if f'{x}/'.startswith(f'{name}/')
    }
    if not inside:
      continue
    if name not in given:
      raise ValueError(f'has {sorted(given)}, its space has {sorted(children)}')
    for suffix, leaf in flatten_value(child, given[name], '', inside).items():
      result[f'{name}/{suffix}' if suffix else name] = leaf
  return result


def parts(space: gymnasium.Space) -> dict[str, gymnasium.Space] | None:
  """Returns the parts of a Dict or Tuple space by name, None for others."""
  if isinstance(space, Dict):
    return {str(name): child for name, child in space.spaces.items()}
  if isinstance(space, Tuple):
    return {str(i): child for i, child in enumerate(space.spaces)}
  return None


def join(space: Any, values: dict[str, Any]) -> Any:
  """Returns a value of a Dict or Tuple space from its parts by name."""
  if isinstance(space, Tuple):
    return tuple(values.values())
  return {name: values[str(name)] for name in space.spaces}


def _part_values(
  space: gymnasium.Space, value: Any, children: Mapping[str, Any]
) -> dict[str, Any]:
  if isinstance(space, Tuple):
    if not isinstance(value, (tuple, list)) or len(value) != len(children):
      count = len(value) if isinstance(value, (tuple, list)) else 'no'
      raise ValueError(f'has {count} parts, its space has {len(children)}')
    return dict(zip(children, value, strict=True))
  if not isinstance(value, Mapping):
    got = type(value).__name__
    raise ValueError(f'has {got}, its space has {sorted(children)}')
  return {str(k): v for k, v in value.items()}


def describe(space: gymnasium.Space) -> str:
  """Returns a space in a few words, such as 'uint8 [84, 84, 3] in 0..255'."""
  if isinstance(space, Box):
    low = space.low.astype(float).min(initial=np.inf)
    high = space.high.astype(float).max(initial=-np.inf)
    bounds = f' in {low:g}..{high:g}' if np.isfinite([low, high]).all() else ''
    return f'{space.dtype} {list(space.shape)}{bounds}'
  if isinstance(space, Discrete):
    return f'Discrete({space.n})'
  if isinstance(space, (MultiDiscrete, MultiBinary)):
    return f'{type(space).__name__} {list(space.shape)}'
  return type(space).__name__


def to_json(space: gymnasium.Space) -> dict[str, Any]:
  """Returns a space as JSON values.

  Of spaces other than Dict, Tuple, Box, Discrete, MultiDiscrete and MultiBinary
  only the kind remains.
  """
  if isinstance(space, Dict):
    items = [[key, to_json(child)] for key, child in space.spaces.items()]
    return {'kind': 'Dict', 'spaces': items}
  if isinstance(space, Tuple):
    return {'kind': 'Tuple', 'spaces': list(map(to_json, space.spaces))}
  if isinstance(space, Box):
    bounds = {'low': _shorten(space.low), 'high': _shorten(space.high)}
    return {'kind': 'Box', **bounds, **_array(space)}
  if isinstance(space, Discrete):
    values = {'n': int(space.n), 'start': int(space.start)}
    return {'kind': 'Discrete', **values, 'dtype': str(space.dtype)}
  if isinstance(space, MultiDiscrete):
    values = {'nvec': space.nvec.tolist(), 'start': space.start.tolist()}
    return {'kind': 'MultiDiscrete', **values, 'dtype': str(space.dtype)}
  if isinstance(space, MultiBinary):
    return {'kind': 'MultiBinary', 'shape': list(space.shape)}
  return {'kind': type(space).__name__}


def from_json(value: Mapping[str, Any]) -> gymnasium.Space:
  """Returns the space of `to_json`; other kinds become a plain Space."""
  kind = value['kind']
  dtype: Any = np.dtype(value['dtype']) if 'dtype' in value else None
  if kind == 'Dict':
    return Dict([(key, from_json(child)) for key, child in value['spaces']])
  if kind == 'Tuple':
    return Tuple([from_json(child) for child in value['spaces']])
  if kind == 'Box':
    low, high = np.asarray(value['low']), np.asarray(value['high'])
    shape = tuple(value['shape'])
    low, high = (np.broadcast_to(x, shape).astype(dtype) for x in (low, high))
    return Box(low, high, shape, dtype.type)
  if kind == 'Discrete':
    return Discrete(value['n'], start=value['start'], dtype=dtype.type)
  if kind == 'MultiDiscrete':
    return MultiDiscrete(value['nvec'], dtype=dtype.type, start=value['start'])
  if kind == 'MultiBinary':
    return MultiBinary(value['shape'])
  return gymnasium.Space()


def _array(space: gymnasium.Space) -> dict[str, Any]:
  return {'shape': list(space.shape or ()), 'dtype': str(space.dtype)}


def _shorten(bound: np.ndarray) -> Any:
  """Returns a bound as JSON; one number if all elements are the same."""
  if bound.size and (bound == bound.flat[0]).all():
    return bound.flat[0].item()
  return bound.tolist()
