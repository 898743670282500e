"""Images of any order of axes, size and number of channels."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from dreamer_tpu.envs import kinds

# Smaller arrays are boards or codes; a Go board has 19 points on a side.
_SMALLEST = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
  """Layout of the images of a Box space.

  Attributes:
    given: Shape of the space.
    axes: Its axes, in the order of height, width and channels.
    unit: Whether values are floats in [0, 1] rather than 0 to 255.
    exact: Whether values are uint8.
  """

  given: tuple[int, ...]
  axes: tuple[int, ...]
  unit: bool
  exact: bool

  @property
  def shape(self) -> tuple[int, int, int]:
    """Height, width and channels."""
    height, width, *rest = (self.given[i] for i in self.axes)
    return height, width, math.prod(rest)

  @property
  def size(self) -> tuple[int, int]:
    """Height and width."""
    return self.shape[:2]

  def leaf(self, size: tuple[int, int]) -> kinds.ObservationLeaf:
    """Returns the observation of these images in another size."""
    notes = []
    if not self.exact:
      notes.append('from 0..1' if self.unit else 'as uint8')
    if self.axes != tuple(range(len(self.axes))):
      notes.append('transposed')
    if size != self.size:
      notes.append('resized')
    shape = (*size, self.shape[2])
    return kinds.ObservationLeaf(
      space=kinds.image_space(shape),
      convert=lambda value, lead: self._convert(value, lead, size),
      traced=lambda value: self._traced(value, size),
      note=', '.join([f'image {list(shape)}', *notes]) if notes else '',
    )

  def _convert(
    self, value: Any, lead: int, size: tuple[int, int]
  ) -> np.ndarray:
    value = np.asarray(value)
    kinds.check_shape(value, self.given, lead)
    if not self.exact:
      value = _to_uint8(value, self.unit)
    elif value.dtype != np.uint8:
      raise ValueError(f'is {value.dtype}, its space says uint8')
    axes = (*range(lead), *(lead + i for i in self.axes))
    value = value.transpose(axes).reshape((*value.shape[:lead], *self.shape))
    if size == self.size:
      return value
    flat = value.reshape((-1, *self.shape))
    resized = np.stack([resize(x, size) for x in flat])
    return resized.reshape((*value.shape[:lead], *resized.shape[1:]))

  def _traced(self, value: Any, size: tuple[int, int]) -> Any:
    import jax

    if self.unit:
      value = (value * 255).round()
    value = value.transpose(self.axes).reshape(self.shape)
    if size != self.size:
      shape = (*size, self.shape[2])
      value = value.astype(np.float32)
      value = jax.image.resize(value, shape, 'linear', antialias=True).round()
    return value.clip(0, 255).astype(np.uint8)


def of(space: gymnasium.Space) -> Picture | None:
  """Returns the layout of a space of images, None for other spaces.

  Images have values from 0 to 255, or floats from 0 to 1, two to four axes, and
  at least 20 pixels on each side. The two neighboring axes of the largest size
  are height and width, so that channels may come first, and images stacked.
  """
  if not isinstance(space, Box) or not 2 <= len(space.shape) <= 4:
    return None
  shape = space.shape
  first = max(range(len(shape) - 1), key=lambda i: _likeness(*shape[i : i + 2]))
  pair = (first, first + 1)
  low, high = space.low, space.high
  unit = space.dtype.kind == 'f' and bool((high == 1).all())
  if (
    min(shape[first : first + 2]) < _SMALLEST
    or space.dtype.kind not in 'uif'
    or not (low == 0).all()
    or not (unit or (high == 255).all())
  ):
    return None
  rest = (i for i in range(len(shape)) if i not in pair)
  exact = space.dtype == np.uint8
  return Picture(given=shape, axes=(*pair, *rest), unit=unit, exact=exact)


def common_size(
  pictures: Iterable[Picture],
  size: tuple[int, int] | None,
  fits: Callable[[tuple[int, int]], bool],
  default: tuple[int, int],
) -> Callable[[Picture], tuple[int, int]]:
  """Returns a function that gives the size in which the agent sees images.

  Args:
    pictures: All images that are observed.
    size: Size of all images; (0, 0) leaves them as they are, None decides.
    fits: Returns whether the encoder can take a size.
    default: Size for images that differ or do not fit.
  """
  if size is None:
    given = {picture.size for picture in pictures}
    keep = len(given) == 1 and fits(next(iter(given)))
    size = (0, 0) if keep else default
  chosen = size
  return lambda picture: chosen if any(chosen) else picture.size


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes uint8 [H, W, C] to (height, width), antialiased."""
  from PIL import Image

  def plane(values: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(values))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR))

  if image.shape[-1] == 3:
    return plane(image)
  channels = range(image.shape[-1])
  return np.stack([plane(image[..., i]) for i in channels], -1)


def _likeness(height: int, width: int) -> tuple[int, bool]:
  """Orders neighboring axes by how much they look like height and width."""
  return min(height, width), height == width


def _to_uint8(value: np.ndarray, unit: bool) -> np.ndarray:
  scaled = np.rint(value * np.float32(255)) if unit else value
  inside = (scaled >= 0) & (scaled <= 255)  # False for NaN.
  if not inside.all():
    few = ', '.join(f'{x:g}' for x in value[~inside][:3])
    raise ValueError(
      f'has {value.size - int(inside.sum())} of {value.size} values outside of '
      f'its space: {few}'
    )
  return scaled.astype(np.uint8)
