"""Screenshots of environments, for videos where no image is observed."""

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

# Mode in which Gymnasium's environments return screenshots.
MODE = 'rgb_array'

SIZE = (128, 128)  # Maximum height and width of a screenshot.


def screenshot(env: Any) -> np.ndarray | str:
  """Renders an environment.

  Args:
    env: A `gymnasium.Env` in an episode.

  Returns:
    Screenshot as of `shrink`, or the reason why there is none.
  """
  try:
    simplify(getattr(env.unwrapped, 'model', None))
  except Exception as error:
    return _reason(error)
  return shrink(env.render)


def shrink(render: Callable[[], Any]) -> np.ndarray | str:
  """Renders and resizes.

  Args:
    render: Returns a screenshot, uint8 [H, W, 3] or [H, W, 4].

  Returns:
    Screenshot of type uint8 [H, W, 3], no larger than `SIZE`, or the reason why
    there is none.
  """
  from PIL import Image

  choose_libraries()
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      given = render()
  except NotImplementedError:
    return 'it has no render()'
  except Exception as error:
    return _reason(error)
  image = np.asarray(given)
  shape = image.shape
  if image.dtype != np.uint8 or shape[2:] not in ((3,), (4,)) or not image.size:
    kind = f'{image.dtype} {shape}' if shape else type(given).__name__
    return f'render() returns {kind}, not uint8 [height, width, 3]'
  small = Image.fromarray(np.ascontiguousarray(image[..., :3]))
  small.thumbnail(SIZE[::-1], Image.Resampling.BILINEAR)
  return np.array(small)


def _reason(error: Exception) -> str:
  text = ' '.join(str(error).split())
  return f'render() raises {type(error).__name__}: {text[:200]}'


def simplify(model: Any) -> None:
  """Turns off what makes MuJoCo slow without a graphics card.

  Args:
    model: A MuJoCo model that was not rendered before; others are ignored.
  """
  if hasattr(model, 'vis') and hasattr(model, 'mat_reflectance'):
    model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
    model.mat_reflectance[:] = 0


def choose_libraries() -> None:
  """Tells graphics libraries, before they start, that there is no screen."""
  os.environ.setdefault('PYGAME_HIDE_SUPPORT_PROMPT', '1')
  os.environ.setdefault('SDL_VIDEODRIVER', 'dummy')
  if sys.platform == 'linux' and 'DISPLAY' not in os.environ:
    os.environ.setdefault('MUJOCO_GL', 'egl')  # GLFW crashes otherwise.
