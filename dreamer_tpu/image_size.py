"""Image sizes that the encoder and the decoder accept.

Plain Python, so that a configuration can be checked before JAX is imported.
"""

from collections.abc import Sequence

from dreamer_tpu.errors import UserError


def parse(items: Sequence[int | str]) -> tuple[int, int] | None:
  """Returns the height and the width of an option, None for 'auto'.

  Args:
    items: Two numbers, or 'auto' alone.

  Raises:
    ValueError: It is something else.
  """
  if list(items) == ['auto']:
    return None
  height, width = map(int, items)
  return height, width


def fits(size: Sequence[int], stages: int) -> bool:
  """Returns whether an encoder that halves images `stages` times takes them.

  Args:
    size: Height and width of the images.
    stages: Number of times.
  """
  return list(size) == _nearest(size, stages)


def grid(name: str, size: Sequence[int], stages: int) -> tuple[int, ...]:
  """Returns height and width of an image after halving it `stages` times.

  Args:
    name: Names the image in an error.
    size: Height and width of the image.
    stages: Number of times that the encoder halves the image.

  Raises:
    UserError: The size is unsuitable; the message names the nearest valid one.
  """
  factor = 2**stages
  if len(size) != 2 or not fits(size, stages):
    near = tuple((_nearest(size, stages) * 2)[:2] or (4 * factor,) * 2)
    raise UserError(
      f'{name} does not fit the encoder: height and width must be multiples of '
      f'{factor} from {3 * factor} to {16 * factor}; set the size option of '
      f'the suite to {near}, the nearest valid size.'
    )
  return tuple(x // factor for x in size)


def _nearest(size: Sequence[int], stages: int) -> list[int]:
  factor = 2**stages
  return [min(max(round(x / factor), 3), 16) * factor for x in size]
