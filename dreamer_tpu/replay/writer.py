"""Appends steps to the open chunk of each stream."""

import collections
from collections.abc import Callable, Sequence

import numpy as np

from dreamer_tpu.replay.chunks import Arrays, Chunk


class Writer:
  """Appends steps to all streams in lockstep.

  After a restore, the streams continue if the first step starts an episode in
  all of them: then sequences cross the restart as they cross episodes.
  Otherwise new streams begin.

  Attributes:
    position: Steps appended to each stream since its beginning.
    open_chunks: The last chunk of each stream.
  """

  def __init__(
    self,
    length: int,
    chunksize: int,
    open_chunk: Callable[[Chunk | None], Chunk],
  ) -> None:
    """Starts without streams.

    Args:
      length: Steps per sequence.
      chunksize: Steps per chunk.
      open_chunk: Makes the chunk after a full one, or after None the first
        chunk of a new stream.
    """
    self._length = length
    self._chunksize = chunksize
    self._open_chunk = open_chunk
    self._resumed = False
    self._reset()

  def append(self, step: Arrays) -> np.ndarray | None:
    """Copies a step to the streams.

    Args:
      step: Stored arrays [streams, ...].

    Returns:
      Addresses of the sequences that this step completes, int64 [streams], or
      None.
    """
    if self._resumed and not np.all(step['is_first']):
      self._reset()
    self._resumed = False
    row = self.position % self._chunksize
    if row == 0:
      self._open_next(len(step['is_first']))
    for key, values in step.items():
      for array, value in zip(self._arrays[key], values, strict=True):
        array[row] = value
    for chunk in self.open_chunks:
      chunk.fill = row + 1
    self.position += 1
    self._recent.append(self._addresses + row)
    return self._recent[0] if len(self._recent) == self._length else None

  def resume(self, streams: Sequence[list[Chunk]], position: int) -> None:
    """Continues restored streams.

    Args:
      streams: Chunks of each stream, oldest first.
      position: Steps appended to each stream since its beginning.
    """
    self._reset()
    self.position = position
    self._resumed = True
    if not position:
      return
    self._set_open([chunks[-1] for chunks in streams])
    addresses = [
      np.concatenate(
        [x.serial * self._chunksize + np.arange(x.fill) for x in chunks]
      )
      for chunks in streams
    ]
    count = min(self._length, *(len(x) for x in addresses))
    self._recent.extend(np.stack([x[-count:] for x in addresses], 1))

  @property
  def aligned(self) -> bool:
    """True if each stream is a whole number of sequences long."""
    return self.position % self._length == 0

  def _reset(self) -> None:
    self.position = 0
    self.open_chunks: list[Chunk] = []
    self._resumed = False
    self._arrays: dict[str, list[np.ndarray]] = {}
    self._addresses: np.ndarray = np.zeros(0, np.int64)
    # Addresses of the last `length` steps.
    self._recent: collections.deque = collections.deque(maxlen=self._length)

  def _open_next(self, width: int) -> None:
    full: list[Chunk | None] = [*self.open_chunks] or [None] * width
    chunks = [self._open_chunk(chunk) for chunk in full]
    for last, chunk in zip(full, chunks, strict=True):
      if last is not None:
        last.next = chunk
    self._set_open(chunks)

  def _set_open(self, chunks: list[Chunk]) -> None:
    self.open_chunks = chunks
    self._arrays = {
      key: [chunk.arrays[key] for chunk in chunks] for key in chunks[0].arrays
    }
    serials = np.array([chunk.serial for chunk in chunks], np.int64)
    self._addresses = serials * self._chunksize
