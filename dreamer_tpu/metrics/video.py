"""Videos as animated GIFs, which browsers and TensorBoard play."""

from typing import Any

import imageio.v3 as iio
import numpy as np
from etils import epath

from dreamer_tpu.paths import atomic_write

_FRAME_MS = 100


def encode_gif(frames: np.ndarray) -> bytes:
  """Encodes a video at 10 frames per second, playing forever.

  Args:
    frames: Video of type uint8 [T, H, W, C], where C is 1 (gray) or 3 (RGB).

  Returns:
    The bytes of the file.

  Raises:
    ValueError: The array is not a video.
  """
  if frames.dtype != np.uint8 or frames.ndim != 4 or not len(frames):
    raise ValueError(
      f'a video is uint8 [T, H, W, C], not {frames.dtype} {frames.shape}'
    )
  if frames.shape[-1] not in (1, 3):
    raise ValueError(f'a video has 1 or 3 channels, not {frames.shape[-1]}')
  rgb = np.broadcast_to(frames, (*frames.shape[:-1], 3))
  return iio.imwrite(
    '<bytes>', rgb, extension='.gif', duration=_FRAME_MS, loop=0
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
