"""Draws the open-loop video of a run as a still image."""

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from dreamer_tpu.errors import UserError
from dreamer_tpu.tools.plot import curves

ROWS = ('Truth', 'Prediction', 'Error')
COLUMNS = 10  # Maximum number of time steps to show.
TILE = 0.9  # Width of a tile in inches.


def find_video(logdir: epath.Path, key: str = '') -> epath.Path:
  """Returns the file of the newest open-loop video of a run.

  Args:
    logdir: A log directory.
    key: An observation key; the first by default.

  Raises:
    UserError: There is no video, or none of that key.
  """
  videos = logdir / 'videos'
  paths = [
    path
    for pattern in ('openloop/*.gif', '*/openloop/*.gif')
    for path in sorted(videos.glob(pattern))
  ]
  if not paths:
    raise UserError(
      f'{str(logdir)!r} holds no open-loop video; reports of runs with images '
      "write one if metrics.outputs includes 'jsonl'."
    )
  for path in paths:
    if not key or path.stem == key:
      return path
  keys = ', '.join(sorted({path.stem for path in paths}))
  raise UserError(
    f'{str(logdir)!r} holds no open-loop video of {key!r}; keys: {keys}.'
  )


def draw(frames: np.ndarray, width: int, samples: int = 1) -> Figure:
  """Draws time steps of sequences side by side, three rows per sequence.

  Args:
    frames: uint8 [T, 3 H, B W, 3]: truth above prediction above error, B
      sequences side by side.
    width: Image width W.
    samples: Maximum number of sequences to show.
  """
  length, height = frames.shape[0], frames.shape[1] // 3
  samples = min(samples, frames.shape[2] // width)
  count = min(COLUMNS, length)
  times = np.linspace(0, length - 1, count).round().astype(int)
  tile_height = TILE * height / width
  figure = Figure(
    (TILE * count + 1.2, tile_height * 3 * samples + 0.8), dpi=150
  )
  axes = figure.subplots(
    3 * samples,
    count,
    squeeze=False,
    gridspec_kw={'wspace': 0.05, 'hspace': 0.05},
  )
  for (row, column), ax in np.ndenumerate(axes):
    top, left = row % 3 * height, row // 3 * width
    image = frames[times[column], top : top + height, left : left + width]
    ax.imshow(image, interpolation='nearest')
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    if row == 0:
      ax.set_title(f'T = {times[column] + 1}', fontsize=8)
    if column == 0:
      ax.set_ylabel(ROWS[row % 3], fontsize=8)
  figure.supxlabel('green border: observed, red: imagined', fontsize=8)
  return figure


def tile_width(logdir: epath.Path, frames: np.ndarray) -> int:
  """Returns the width of one image in a video [T, 3 H, B W, 3].

  It is that of the configuration, if its height matches, else H.

  Raises:
    UserError: The video does not divide into images.
  """
  height, width = frames.shape[1] // 3, frames.shape[2]
  config = curves.read_config(logdir)
  suite = config.get('task', '').partition('_')[0]
  size = config.get('env', {}).get(suite, {}).get('size')
  candidates = [size[1], height] if size and size[0] == height else [height]
  for candidate in candidates:
    if width % candidate == 0:
      return candidate
  raise UserError(
    f'The open-loop video of {height * 3}x{width} pixels does not divide into '
    f'images of height {height}.'
  )
