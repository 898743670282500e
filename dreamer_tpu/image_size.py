"""Image sizes that the encoder and the decoder accept.

Plain Python, so that a configuration can be checked before JAX is imported.
"""

from collections.abc import Sequence

from dreamer_tpu.errors import UserError


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
  cells = tuple(min(max(round(x / factor), 3), 16) for x in size)
  if len(size) != 2 or list(size) != [n * factor for n in cells]:
    near = tuple(n * factor for n in (cells * 2)[:2] or (4, 4))
    raise UserError(
      f'{name} does not fit the encoder: height and width must be multiples of '
      f'{factor} from {3 * factor} to {16 * factor}; set the size option of '
      f'the suite to {near}, the nearest valid size.'
    )
  return cells
