"""The open-loop video of a run as one still: truth, prediction, error."""

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from dreamer_tpu.errors import UserError
from dreamer_tpu.tools.plot import curves

ROWS = ('Truth', 'Prediction', 'Error')


def find_video(logdir: epath.Path, key: str = '') -> epath.Path:
  """Returns the file of a run's newest open-loop video.

  Args:
    logdir: A log directory.
    key: The observation key, where there are several.

  Raises:
    UserError: There is none, or none of that key.
  """
  videos = logdir / 'videos'
  paths = [
    path
    for pattern in ('openloop/*.gif', '*/openloop/*.gif')
    for path in sorted(videos.glob(pattern))
  ]
  if not paths:
    raise UserError(
      f'{str(logdir)!r} holds no open-loop video: it is written with each '
      "report of a run with images, if metrics.outputs has 'jsonl'"
    )
  for path in paths:
    if not key or path.stem == key:
      return path
  known = ', '.join(sorted({path.stem for path in paths}))
  raise UserError(f'no open-loop video of {key!r} in {str(logdir)!r}: {known}')


def draw(
  frames: np.ndarray, width: int, samples: int = 1, columns: int = 10
) -> Figure:
  """Draws moments of sequences side by side, three rows for each.

  Args:
    frames: uint8 [T, 3 H, B W, 3]: truth above prediction above error, B
      sequences side by side.
    width: W.
    samples: How many sequences to show at most.
    columns: How many moments to show at most.
  """
  length, height = frames.shape[0], frames.shape[1] // 3
  samples = min(samples, frames.shape[2] // width)
  times = np.linspace(0, length - 1, min(columns, length)).round().astype(int)
  aspect = height / width
  size = 0.9
  figure = Figure(
    (size * len(times) + 1.2, size * aspect * 3 * samples + 0.8), dpi=150
  )
  axes = figure.subplots(
    3 * samples,
    len(times),
    squeeze=False,
    gridspec_kw={'wspace': 0.05, 'hspace': 0.05},
  )
  for row, row_axes in enumerate(axes):
    top, left = row % 3 * height, row // 3 * width
    for time, ax in zip(times, row_axes, strict=True):
      tile = frames[time, top : top + height, left : left + width]
      ax.imshow(tile, interpolation='nearest')
      ax.set_xticks([])
      ax.set_yticks([])
      ax.spines[:].set_visible(False)
      if row == 0:
        ax.set_title(f'T = {time + 1}', fontsize=8)
    row_axes[0].set_ylabel(ROWS[row % 3], fontsize=8)
  figure.supxlabel('green border: observed, red: imagined', fontsize=8)
  return figure


def tile_width(logdir: epath.Path, frames: np.ndarray) -> int:
  """Returns the width of one image in a grid [T, 3 H, B W, 3].

  The configuration knows it; else images are taken for square.

  Raises:
    UserError: The grid does not divide.
  """
  height, width = frames.shape[1] // 3, frames.shape[2]
  candidates = [height]
  config = curves.read_config(logdir)
  suite = config.get('task', '').partition('_')[0]
  size = config.get('env', {}).get(suite, {}).get('size')
  if size and size[0] == height:
    candidates.insert(0, size[1])
  for candidate in candidates:
    if width % candidate == 0:
      return candidate
  raise UserError(
    f'the open-loop video of {height * 3}x{width} pixels does not divide into '
    f'images of height {height}'
  )
