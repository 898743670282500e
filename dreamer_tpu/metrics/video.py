"""Videos as animated GIFs, which browsers and TensorBoard play."""

import io

import numpy as np
from etils import epath
from PIL import Image


def encode_gif(frames: np.ndarray, fps: int = 10) -> bytes:
  """Encodes a video, each frame with a palette of its own.

  Args:
    frames: uint8 [T, H, W, C], C 1 (gray) or 3 (RGB), T at least 1.
    fps: Frames per second, up to 50 (the format counts hundredths of a
      second).

  Returns:
    The bytes of the file. It plays forever.

  Raises:
    ValueError: The array is not such a video.
  """
  frames = np.asarray(frames)
  if frames.dtype != np.uint8 or frames.ndim != 4 or not len(frames):
    raise ValueError(
      f'a video is uint8 [T, H, W, C], not {frames.dtype} {frames.shape}'
    )
  if frames.shape[-1] not in (1, 3):
    raise ValueError(f'a video has 1 or 3 channels, not {frames.shape[-1]}')
  frames = np.broadcast_to(frames, (*frames.shape[:-1], 3))
  images = [
    Image.fromarray(np.ascontiguousarray(frame)).quantize(
      256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
    )
    for frame in frames
  ]
  buffer = io.BytesIO()
  images[0].save(
    buffer,
    'GIF',
    save_all=True,
    append_images=images[1:],
    duration=_duration(fps),
    loop=0,
  )
  return buffer.getvalue()


def write_gif(path: epath.PathLike, frames: np.ndarray, fps: int = 10) -> None:
  """Writes a video [T, H, W, C] to a file, replacing it in one step."""
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + '.partial')
  partial.write_bytes(encode_gif(frames, fps))
  partial.replace(path)


def read_gif(path: epath.PathLike, fps: int = 10) -> np.ndarray:
  """Reads a video written with the same `fps`: uint8 [T, H, W, 3].

  Equal neighbours are stored as one long frame and come back as several.
  """
  frames = []
  with Image.open(io.BytesIO(epath.Path(path).read_bytes())) as image:
    for index in range(getattr(image, 'n_frames', 1)):
      image.seek(index)
      shown = image.info.get('duration') or _duration(fps)
      frame = np.asarray(image.convert('RGB'))
      frames += [frame] * max(1, round(shown / _duration(fps)))
  return np.stack(frames)


def _duration(fps: int) -> int:
  """Milliseconds a frame is shown."""
  return max(20, round(100 / fps) * 10)
