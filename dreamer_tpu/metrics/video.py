"""Videos as animated GIFs, which browsers and TensorBoard play."""

from typing import Any

import imageio.v3 as iio
import numpy as np
from etils import epath

from dreamer_tpu.paths import atomic_write

_FRAME_MS = 100


class Videos:
  """Target of videos: the latest of each name, as FOLDER/NAME.gif.

  Args:
    folder: Created with the first video.
  """

  def __init__(self, folder: epath.PathLike) -> None:
    self._folder = epath.Path(folder)

  def write(self, item: tuple[str, np.ndarray]) -> None:
    """Writes (name, frames as uint8 [T, H, W, C])."""
    name, frames = item
    write_gif(self._folder / f'{name}.gif', frames)

  def close(self) -> None:
    """Does nothing: the files are complete."""


def to_rgb(frames: np.ndarray) -> np.ndarray:
  """Returns a video [T, H, W, C] in RGB.

  Args:
    frames: Video of type uint8 [T, H, W, C]. If C is neither 1 (gray) nor 3
      (RGB), its images are shown side by side, in RGB if C is a multiple of 3.

  Raises:
    ValueError: The array is not a video.
  """
  if frames.dtype != np.uint8 or frames.ndim != 4 or not len(frames):
    raise ValueError(
      f'a video is uint8 [T, H, W, C], not {frames.dtype} {frames.shape}'
    )
  channels = frames.shape[-1]
  count = channels // 3 if channels % 3 == 0 else channels
  frames = np.concatenate(np.split(frames, count, -1), 2)
  return np.broadcast_to(frames, (*frames.shape[:-1], 3))


def encode_gif(frames: np.ndarray) -> bytes:
  """Encodes a video at 10 frames per second, playing forever.

  Args:
    frames: Video as in `to_rgb`.

  Returns:
    The bytes of the file.

  Raises:
    ValueError: The array is not a video.
  """
  return iio.imwrite(
    '<bytes>', to_rgb(frames), extension='.gif', duration=_FRAME_MS, loop=0
  )


def write_gif(path: epath.PathLike, frames: np.ndarray) -> None:
  """Writes a video [T, H, W, C] to a file, atomically."""
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  atomic_write(path, encode_gif(frames))


def read_gif(path: epath.PathLike) -> np.ndarray:
  """Reads a video written by `write_gif`, as uint8 [T, H, W, 3]."""
  gif: Any
  with iio.imopen(epath.Path(path).read_bytes(), 'r', extension='.gif') as gif:
    frames = gif.read(index=..., mode='RGB')
    shown = [gif.metadata(index=i)['duration'] for i in range(len(frames))]
  # Equal neighbors are stored as one frame with a longer duration.
  return np.repeat(frames, np.array(shown) // _FRAME_MS, axis=0)
