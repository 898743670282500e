"""Copies sequences from chunks to the arrays of a batch."""

from collections.abc import Mapping

import numpy as np

from dreamer_tpu.replay.chunks import Chunk, Field


def gather(
  chunks: Mapping[int, Chunk],
  chunksize: int,
  fields: Mapping[str, Field],
  starts: np.ndarray,
  window: tuple[int, int],
  length: int,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Copies a window of each sequence, every byte once.

  Args:
    chunks: Chunks by serial.
    chunksize: Steps per chunk.
    fields: Fields of a step.
    starts: Addresses of the first steps of the sequences, int64 [batch].
    window: Steps (start, stop) of the sequences to copy.
    length: Steps of a whole sequence.

  Returns:
    New arrays [batch, steps, ...] by key, addresses int64 [batch, steps].

  Raises:
    ValueError: The window is empty or exceeds the sequence.
  """
  first, stop = window
  if not 0 <= first < stop <= length:
    raise ValueError(f'steps {window} of sequences of {length} steps')
  steps = stop - first
  stepid = np.empty((len(starts), steps), np.int64)
  follow = np.zeros(len(starts), bool)
  pieces = []
  for row, start in enumerate(starts.tolist()):
    chunk, index = _skip(chunks[start // chunksize], start % chunksize + first)
    done = 0
    while done < steps:
      chunk, index = _skip(chunk, index)
      count = min(steps - done, chunksize - index)
      address = chunk.serial * chunksize + index
      stepid[row, done : done + count] = np.arange(address, address + count)
      pieces.append((row, done, chunk, index, count))
      done += count
      index += count
    if stop < length:
      chunk, index = _skip(chunk, index)
      follow[row] = chunk.arrays['is_first'][index]
  data = {}
  for key, field in fields.items():
    out = np.empty((len(starts), steps, *field.shape), field.stored)
    for row, done, chunk, index, count in pieces:
      source = chunk.arrays[key][index : index + count]
      out[row, done : done + count] = source
    data[key] = out.view(field.dtype)
  _mark_ends(data, follow, first == 0)
  return data, stepid


def _skip(chunk: Chunk, index: int) -> tuple[Chunk, int]:
  """Returns the chunk of the stream that holds a row, and the row in it."""
  while chunk.next is not None and index >= chunk.fill:
    index -= chunk.fill
    chunk = chunk.next
  return chunk, index


def _mark_ends(
  data: dict[str, np.ndarray], follow: np.ndarray, from_start: bool
) -> None:
  """Sets is_last before every is_first, and is_first at sequence starts."""
  is_first, is_last = data['is_first'], data['is_last']
  is_last[:, :-1] |= is_first[:, 1:]
  is_last[:, -1] |= follow
  if from_start:
    is_first[:, 0] = True
