"""Observations of an environment as those of the agent."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from dreamer_tpu.envs import kinds, pictures
from dreamer_tpu.envs.kinds import ObservationLeaf
from dreamer_tpu.errors import UserError

LOG = 'log/'

_MOST_CLASSES = 2**14  # Features of a one-hot observation; else numbers.
_MOST_CODES = 32  # Values of an element of a board.


def supported(space: gymnasium.Space) -> bool:
  """Returns whether the agent can take a space without parts."""
  if 0 in (space.shape or ()):
    return False
  if isinstance(space, Box):
    return space.dtype.kind in 'biuf'
  return isinstance(space, (Discrete, MultiDiscrete, MultiBinary))


def leaf(space: Any) -> ObservationLeaf:
  """Returns the observation of a space that holds no images.

  Discrete, MultiDiscrete, MultiBinary and bool boxes are categories, and so are
  boards: boxes of 8-bit integers with two or more axes and few values. All
  others are numbers. Elements with unequal numbers of categories get the
  largest.
  """
  shape, note = tuple(space.shape or ()), ''
  if isinstance(space, Discrete):
    classes, start = np.asarray(space.n), space.start
  elif isinstance(space, MultiDiscrete):
    classes, start = space.nvec, space.start
  elif isinstance(space, MultiBinary) or space.dtype == np.bool_:
    classes, start = np.full(shape, 2), 0
  elif _is_board(space):
    classes = space.high.astype(np.int64) - space.low + 1
    start, note = space.low.astype(np.int64), 'categories'
  else:
    return _numbers(space)
  if classes.size * classes.max(initial=0) > _MOST_CLASSES:
    return _numbers(space)
  flat = kinds.at_most_rank(shape, 2)
  largest = int(classes.max())
  if flat != shape or note:
    note = f'{classes.size} categories of {largest}'

  def convert(value: Any, lead: int) -> np.ndarray:
    value = np.asarray(value)
    if value.dtype.kind not in 'iub':
      raise ValueError(f'is {value.dtype}, its space holds integers')
    value = kinds.check_shape(value, shape, lead).astype(np.int64) - start
    outside = (value < 0) | (value >= classes)
    if outside.any():
      few = (value + start)[outside].ravel()[:3].tolist()
      raise ValueError(
        f'has {int(outside.sum())} values outside of its space, such as {few}: '
        f'{str(space)[:100]}'
      )
    return value.astype(np.int32).reshape((*value.shape[:lead], *flat))

  first = np.asarray(start, np.int32)
  return ObservationLeaf(
    space=kinds.category_space(flat, largest),
    convert=convert,
    traced=lambda value: (value.astype(np.int32) - first).reshape(flat),
    note=note,
  )


def log_leaf(name: str, space: gymnasium.Space) -> ObservationLeaf:
  """Returns a log/... key: a scalar, which may be NaN, or a uint8 image.

  Raises:
    UserError: It is neither.
  """
  shape = space.shape or ()
  if (
    isinstance(space, Box) and space.dtype == np.uint8 and len(shape) in (2, 3)
  ):
    axes = tuple(range(len(shape)))
    picture = pictures.Picture(given=shape, axes=axes, unit=False, exact=True)
    return picture.leaf(picture.size)
  if supported(space) and shape in ((), (1,)):
    return ObservationLeaf(
      space=kinds.vector_space(()),
      convert=lambda value, lead: kinds.check_shape(
        np.asarray(value, np.float32), (), lead
      ),
      traced=lambda value: value.astype(np.float32).reshape(()),
    )
  raise UserError(
    f'observation {name!r} has shape {shape}: log/... keys are scalars '
    'or uint8 images'
  )


def _is_board(space: Any) -> bool:
  if space.dtype.itemsize > 1 or len(space.shape) < 2:
    return False
  classes = int(space.high.max()) - int(space.low.min()) + 1
  return classes <= _MOST_CODES


def _numbers(space: gymnasium.Space) -> ObservationLeaf:
  shape = tuple(space.shape or ())
  flat = kinds.at_most_rank(shape, 2)
  result: gymnasium.Space = kinds.vector_space(flat)
  if isinstance(space, Box):
    low, high = (
      np.asarray(x, np.float32).reshape(flat) for x in (space.low, space.high)
    )
    result = Box(low, high, flat, np.float32)

  def convert(value: Any, lead: int) -> np.ndarray:
    value = np.asarray(value, np.float32)
    if value.shape[lead:] != shape:
      value = kinds.check_shape(value, shape, lead)
    finite = np.isfinite(value)
    if not finite.all():
      raise ValueError(_not_finite(value[~finite], value.size))
    return (
      value if flat is shape else value.reshape((*value.shape[:lead], *flat))
    )

  numbers = f'{int(np.prod(shape)):,} numbers'
  board = space.dtype == np.uint8 and len(shape) > 1
  note = numbers if board or flat != shape else ''
  return ObservationLeaf(
    space=result,
    convert=convert,
    traced=lambda value: value.astype(np.float32).reshape(flat),
    note=note,
  )


def _not_finite(wrong: np.ndarray, size: int) -> str:
  """Returns a message that names a few of the values."""
  few = ', '.join(str(x) for x in wrong[:3])
  more = ', ...' if wrong.size > 3 else ''
  return f'is not finite in {wrong.size} of {size} values: {few}{more}'
