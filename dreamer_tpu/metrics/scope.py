"""Output for Scope, the metrics viewer of the public implementation."""

import struct
from collections.abc import Mapping

import numpy as np
from etils import epath

from dreamer_tpu.metrics import video
from dreamer_tpu.paths import atomic_write

_ROW = 16  # Bytes per row of a table: a step, and a number or a file.


class Scope:
  """Target of metrics: the columns of LOGDIR/scope.

  The command `scope` shows them. Scope has no histograms.

  Args:
    logdir: Directory of the run.
    last_step: Rows after this step are dropped; None keeps all.
  """

  def __init__(self, logdir: epath.PathLike, last_step: int | None) -> None:
    self._logdir = epath.Path(logdir)
    self._last_step = last_step
    self._begun = False

  def write(self, item: tuple[int, Mapping[str, np.ndarray]]) -> None:
    """Writes (step, metrics).

    Raises:
      OSError: The disk is full.
    """
    import elements
    import scope

    step, metrics = item
    if not self._begun and self._last_step is not None:
      _trim(self._logdir / 'scope', self._last_step)
    # A failure may leave half of a row.
    self._begun = False
    writer = scope.Writer(elements.Path(str(self._logdir)), workers=0)
    writer.add(
      step, {k: _convert(x) for k, x in metrics.items() if x.ndim != 1}
    )
    writer.flush()
    self._begun, self._last_step = True, step

  def close(self) -> None:
    """Does nothing: the files are complete."""


def _convert(value: np.ndarray) -> np.ndarray:
  match value.ndim:
    case 0:
      return value.astype(float)
    case 3:
      return video.to_rgb(value[None])[0]
    case _:
      frames = video.to_rgb(value)
      odd = [size % 2 for size in frames.shape[1:3]]  # H.264 has none.
      return np.pad(frames, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0)))


def _trim(folder: epath.Path, last_step: int) -> None:
  """Drops later rows and incomplete ones.

  A column of numbers is a table. One of files is a folder with an index, whose
  steps have another byte order; names of files begin with the step.
  """
  for column in folder.iterdir() if folder.exists() else ():
    numbers = column.suffix == '.float'
    table = column if numbers else column / 'index'
    step = struct.Struct('>q' if numbers else '<q')
    data = table.read_bytes() if table.exists() else b''
    ends = range(_ROW, len(data) + 1, _ROW)
    rows = [data[end - _ROW : end] for end in ends]
    kept = b''.join(
      row for row in rows if step.unpack_from(row)[0] <= last_step
    )
    if kept != data:
      atomic_write(table, kept)
    if not numbers:
      for file in column.glob(f'*{column.suffix}'):
        if int(file.name.partition('-')[0]) > last_step:
          file.unlink()
