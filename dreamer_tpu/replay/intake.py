"""Where the next step of every stream goes."""

from collections.abc import Callable, Sequence

import numpy as np

from dreamer_tpu.replay.chunks import Arrays, Chunk


class Intake:
  """The open ends of the streams, which all grow in lockstep.

  After a restore, the streams go on if the first step added begins a new
  episode in all of them. Such a sequence crosses the restart as it would
  cross the end of an episode. Otherwise new streams begin.
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
      open_chunk: Makes the chunk that follows a full one (None: that begins a
        new stream).
    """
    self._length = length
    self._chunksize = chunksize
    self._open_chunk = open_chunk
    self.position = 0
    self.tails: list[Chunk] = []
    self._resumed = False
    self._begin()

  def append(self, step: Arrays) -> np.ndarray | None:
    """Copies a step to the ends of the streams.

    Args:
      step: Stored arrays [streams, ...].

    Returns:
      The addresses of the sequence starts that this step makes complete,
      int64 [streams], or None.
    """
    if self._resumed and not np.all(step['is_first']):
      self._begin()
    self._resumed = False
    row = self.position % self._chunksize
    if row == 0:
      self._roll(len(step['is_first']))
    for key, values in step.items():
      for array, value in zip(self._arrays[key], values, strict=True):
        array[row] = value
    for chunk in self.tails:
      chunk.fill = row + 1
    self.position += 1
    return self._complete()

  def resume(self, streams: Sequence[list[Chunk]], position: int) -> None:
    """Goes on after restored streams.

    Args:
      streams: Live chunks of each stream, the oldest first.
      position: Steps that were ever added to each stream.
    """
    self._begin()
    self.position = position
    self._resumed = True
    if not position:
      return
    self._set_tails([chunks[-1] for chunks in streams])
    start = max(0, position - self._length)
    back = (position - 1) // self._chunksize - start // self._chunksize
    self._set_heads([chunks[-1 - back] for chunks in streams])

  @property
  def full(self) -> bool:
    """Whether a whole number of sequences of every stream is complete."""
    return self.position % self._length == 0

  def _begin(self) -> None:
    self.position = 0
    self.tails = []
    self._arrays: dict[str, list[np.ndarray]] = {}
    self._resumed = False

  def _roll(self, width: int) -> None:
    tails: list[Chunk | None] = [*self.tails] or [None] * width
    chunks = []
    for tail in tails:
      chunk = self._open_chunk(tail)
      if tail is not None:
        tail.next = chunk
      chunks.append(chunk)
    if not self.tails:
      self._set_heads(chunks)
    self._set_tails(chunks)

  def _complete(self) -> np.ndarray | None:
    start = self.position - self._length
    if start < 0:
      return None
    row = start % self._chunksize
    if row == 0 and start:
      heads = [chunk.next for chunk in self._heads]
      self._set_heads([chunk for chunk in heads if chunk is not None])
    return self._addresses + row

  def _set_tails(self, chunks: list[Chunk]) -> None:
    self.tails = chunks
    self._arrays = {
      key: [chunk.arrays[key] for chunk in chunks] for key in chunks[0].arrays
    }

  def _set_heads(self, chunks: list[Chunk]) -> None:
    """Sets the chunks in which the newest complete sequences start."""
    self._heads = chunks
    serials = np.array([chunk.serial for chunk in chunks], np.int64)
    self._addresses = serials * self._chunksize
