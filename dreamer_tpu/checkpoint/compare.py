"""What differs between a checkpoint and the configuration at hand."""

import json
from collections.abc import Mapping
from typing import Any

from dreamer_tpu.config import flatten

# Keys that shape the agent come first in a message, the others after them.
_GROUPS = ('task', 'agent', 'dtype', 'env')


def config_differences(
  saved: Mapping[str, Any], current: Mapping[str, Any]
) -> list[str]:
  """Config keys that differ, as 'KEY is NEW, was OLD', the telling ones first.

  Args:
    saved: Nested config of the checkpoint, as read from JSON.
    current: Nested config of this run.
  """
  old = flatten(saved)
  new = flatten(json.loads(json.dumps(current, default=str)))
  names = [k for k in {**old, **new} if old.get(k) != new.get(k)]
  names.sort(key=lambda k: (_rank(k), k))
  return [f'{k} is {_show(new, k)}, was {_show(old, k)}' for k in names]


def tree_differences(
  saved: Mapping[str, Any], wanted: Mapping[str, Any]
) -> list[str]:
  """Arrays that differ, in the order: shape or dtype, missing, left over.

  Args:
    saved: By name, something with `shape` and `dtype`, from the checkpoint.
    wanted: The same for the agent at hand.
  """
  both = [k for k in wanted if k in saved]
  return [
    *(
      f'{k} is {describe(wanted[k])}, was {describe(saved[k])}'
      for k in both
      if not same(wanted[k], saved[k])
    ),
    *(
      f'{k} {describe(wanted[k])} is not in the checkpoint'
      for k in wanted
      if k not in saved
    ),
    *(
      f'{k} {describe(saved[k])} is only in the checkpoint'
      for k in saved
      if k not in wanted
    ),
  ]


def same(a: Any, b: Any) -> bool:
  """Whether two arrays have the same shape and dtype."""
  return tuple(a.shape) == tuple(b.shape) and a.dtype == b.dtype


def describe(array: Any) -> str:
  """An array's shape and dtype, such as 'float32[8, 64]'."""
  return f'{array.dtype}{list(array.shape)}'


def first(items: list[str], limit: int = 3) -> str:
  """The first few items in one line, with the number of those left out."""
  more = f' and {len(items) - limit} more' if len(items) > limit else ''
  return '; '.join(items[:limit]) + more


def _rank(name: str) -> int:
  group = name.split('.')[0]
  return _GROUPS.index(group) if group in _GROUPS else len(_GROUPS)


def _show(flat: Mapping[str, Any], name: str) -> str:
  return repr(flat[name]) if name in flat else 'absent'
