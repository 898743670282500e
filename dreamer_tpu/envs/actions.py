"""Actions of the agent as those of an environment."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from dreamer_tpu.envs import kinds
from dreamer_tpu.envs.kinds import ActionLeaf
from dreamer_tpu.errors import UserError

# Values per element of an integer Box; with more, they are rounded floats.
_MOST_CLASSES = 1024

# A bound beyond is none.
_UNBOUNDED = 1e9

# Recorded actions may be outside of their bounds by as much, relatively.
_ROUNDING = 1e-6


def leaf(name: str, space: gymnasium.Space, scale: float) -> ActionLeaf:
  """Returns the actions of the agent that make one of the environment.

  A MultiDiscrete with unequal sizes becomes one Discrete per element. Elements
  of a Box with two bounds are scaled from [-1, 1]; others are multiplied by
  `scale` and clipped to the bound that they have.

  Args:
    name: Name of the action.
    space: Space without parts.
    scale: Factor of unbounded elements.

  Raises:
    UserError: The space is not supported.
  """
  if 0 in (space.shape or ()):
    raise UserError(f'action {name!r} has shape {space.shape}: no elements')
  if isinstance(space, Discrete):
    return _discrete(name, int(space.n), int(space.start), space.dtype)
  if isinstance(space, MultiDiscrete):
    return _categories(name, space.nvec, space.start, space.dtype)
  if isinstance(space, MultiBinary) or (
    isinstance(space, Box) and space.dtype == np.bool_
  ):
    classes = np.full(space.shape, 2)
    return _categories(name, classes, np.zeros_like(classes), space.dtype)
  if isinstance(space, Box) and space.dtype.kind in 'iu':
    classes = space.high.astype(np.float64) - space.low + 1
    if (classes <= _MOST_CLASSES).all():
      start = space.low.astype(np.int64)
      return _categories(name, classes.astype(np.int64), start, space.dtype)
  if isinstance(space, Box) and space.dtype.kind in 'iuf':
    return _numbers(name, space, scale)
  raise UserError(
    f'action {name!r} is a {type(space).__name__} space of dtype '
    f'{space.dtype}, which is not supported: {kinds.SUPPORTED}'
  )


def _discrete(name: str, n: int, start: int, dtype: Any) -> ActionLeaf:
  kind = np.dtype(dtype)

  def convert(act: dict[str, Any], lead: int) -> Any:
    if not lead:
      return kind.type(int(act[name]) + start)
    return (np.asarray(act[name], np.int64) + start).astype(kind)

  def invert(value: Any, lead: int) -> dict[str, np.ndarray]:
    value = kinds.check_shape(np.asarray(value), (), lead)
    return {name: _from_start(value, np.asarray(n), np.asarray(start))}

  return ActionLeaf(
    spaces={name: kinds.discrete_space(n)},
    convert=convert,
    invert=invert,
    traced=lambda act: act[name] + start,
  )


def _categories(
  name: str, classes: np.ndarray, start: np.ndarray, dtype: Any
) -> ActionLeaf:
  shape, kind = classes.shape, np.dtype(dtype)
  if not shape:
    return _discrete(name, int(classes), int(start), dtype)
  flat = kinds.at_most_rank(shape, 1)
  if (classes == classes.flat[0]).all():
    spaces = {name: kinds.category_space(flat, int(classes.flat[0]))}
  else:
    spaces = {
      f'{name}/{i}': kinds.discrete_space(n) for i, n in enumerate(classes.flat)
    }

  def convert(act: dict[str, Any], lead: int) -> np.ndarray:
    given = [np.asarray(act[key], np.int64) for key in spaces]
    value = given[0] if len(given) == 1 else np.stack(given, -1)
    return (value.reshape((*value.shape[:lead], *shape)) + start).astype(kind)

  def traced(act: dict[str, Any]) -> Any:
    import jax.numpy as jnp

    value = jnp.stack([act[key] for key in spaces], -1).reshape(shape)
    return (value + start.astype(np.int32)).astype(_traced(kind))

  def invert(value: Any, lead: int) -> dict[str, np.ndarray]:
    value = kinds.check_shape(np.asarray(value), shape, lead)
    value = _from_start(value, classes, start)
    if len(spaces) > 1:
      value = value.reshape((*value.shape[:lead], -1))
      return {key: value[..., i] for i, key in enumerate(spaces)}
    return {name: value.reshape((*value.shape[:lead], *flat))}

  note = f'{len(spaces)} actions' if len(spaces) > 1 else ''
  return ActionLeaf(
    spaces=spaces,
    convert=convert,
    invert=invert,
    traced=traced,
    note=note,
  )


def _from_start(
  value: np.ndarray, classes: np.ndarray, start: np.ndarray
) -> np.ndarray:
  """Returns categories from 0, int32."""
  if value.dtype.kind not in 'iub':
    raise ValueError(f'is {value.dtype}, its space holds integers')
  value = value.astype(np.int64) - start
  _check_inside(value, (value >= 0) & (value < classes), start)
  return value.astype(np.int32)


def _check_inside(value: np.ndarray, inside: np.ndarray, start: Any) -> None:
  if not inside.all():
    few = ', '.join(f'{x:g}' for x in (value + start)[~inside].ravel()[:3])
    raise ValueError(
      f'has {inside.size - int(inside.sum())} of {inside.size} values outside '
      f'of its space: {few}'
    )


def _numbers(name: str, space: Box, scale: float) -> ActionLeaf:
  shape, kind = space.shape, space.dtype
  low, high = space.low.astype(np.float64), space.high.astype(np.float64)
  whole, flat = kind.kind in 'iu', kinds.at_most_rank(shape, 1)
  bounded = (low > -_UNBOUNDED) & (high < _UNBOUNDED)
  least = np.where(bounded, -1.0, low).astype(np.float32).reshape(flat)
  most = np.where(bounded, 1.0, high).astype(np.float32).reshape(flat)
  ends = np.where(bounded, low, -scale), np.where(bounded, high, scale)
  center, factor = (ends[1] + ends[0]) / 2, (ends[1] - ends[0]) / 2

  def convert(act: dict[str, Any], lead: int) -> np.ndarray:
    value = np.asarray(act[name], np.float64)
    value = value.reshape((*value.shape[:lead], *shape))
    value = value * factor + center
    if whole:
      value = np.rint(value)
    return np.minimum(np.maximum(value, low), high).astype(kind)

  def traced(act: dict[str, Any]) -> Any:
    value = act[name].reshape(shape) * factor + center
    value = value.round() if whole else value
    return value.clip(low, high).astype(_traced(kind))

  def invert(value: Any, lead: int) -> dict[str, np.ndarray]:
    value = kinds.check_shape(np.asarray(value, np.float64), shape, lead)
    slack = _ROUNDING * np.maximum(1, np.abs(value))
    _check_inside(value, (value >= low - slack) & (value <= high + slack), 0)
    # An element with equal bounds has one value.
    value = (value - center) / np.where(factor > 0, factor, 1)
    value = value.reshape((*value.shape[:lead], *flat)).astype(np.float32)
    return {name: np.minimum(np.maximum(value, least), most)}

  return ActionLeaf(
    spaces={name: Box(least, most, flat, np.float32)},
    convert=convert,
    traced=traced,
    invert=invert,
    note=_note(bounded, low, high, scale, whole),
  )


def _traced(kind: np.dtype) -> np.dtype:
  """Returns the type for a value inside a program, which has 32 bits."""
  return np.dtype(f'{kind.kind}{min(kind.itemsize, 4)}')


def _note(
  bounded: np.ndarray,
  low: np.ndarray,
  high: np.ndarray,
  scale: float,
  whole: bool,
) -> str:
  """Returns how numbers are scaled; '' if they are in [-1, 1]."""
  rounded = ', rounded' if whole else ''
  if not bounded.all():
    return (
      f'about -1..1, times env.action_scale={scale:g} as it has no '
      f'bounds{rounded}'
    )
  if (low == -1).all() and (high == 1).all():
    return ''
  return f'scaled from -1..1{rounded}'
