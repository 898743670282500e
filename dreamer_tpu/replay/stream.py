"""Training batches, one after the other, cut from sampled sequences."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from dreamer_tpu.errors import UserError
from dreamer_tpu.replay.buffer import Replay
from dreamer_tpu.replay.saving import restore


class Stream:
  """An endless iterator over batches.

  Every sampled sequence is used in `consec` parts of context + length steps;
  part i begins i * length steps into it, so that the last `context` steps of
  a part come again as the first of the next. All rows of a batch are the same
  part. A part is copied when it is asked for. If one of the sequences has
  been dropped from the replay by then, the whole batch starts over with fresh
  sequences.
  """

  def __init__(
    self,
    replay: Replay,
    *,
    batch: int,
    length: int,
    context: int = 0,
    consec: int = 1,
    online: bool = True,
    seed: int | None = None,
  ) -> None:
    """Starts with fresh sequences.

    Args:
      replay: Where the sequences come from.
      batch: Sequences per batch.
      length: Steps to train on per part.
      context: Steps before those.
      consec: Parts per sequence.
      online: Whether to draw from the replay's online queue.
      seed: Seed of a generator of its own, so that its batches do not change
        what others draw. None draws with the replay's.

    Raises:
      UserError: If the replay's sequences are too short.
    """
    if context + length * consec > replay.length:
      raise UserError(
        f'{consec} parts of {length} steps and {context} of context need '
        f'sequences of {context + length * consec} steps, the replay has '
        f'{replay.length}'
      )
    self._replay = replay
    self._batch = batch
    self._length = length
    self._steps = context + length
    self._consec = consec
    self._online = online
    self._rng = None
    if seed is not None:
      self._rng = np.random.Generator(np.random.PCG64(seed))
    self._starts: np.ndarray | None = None
    self._part = 0

  def __iter__(self) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    return self

  def __next__(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the next batch.

    Returns:
      New arrays [batch, context + length, ...] by key, with 'consec', the
      number of the part, int32 [batch]; and the addresses of the steps, int64
      [batch, context + length].

    Raises:
      ValueError: If the replay holds no sequence yet.
    """
    found = None
    if self._starts is not None:
      offset = self._part * self._length
      found = self._replay.gather(self._starts, offset, self._steps)
    if found is None:
      self._part = 0
      found = self._replay.sample(
        self._batch, self._steps, online=self._online, rng=self._rng
      )
      self._starts = found[1][:, 0].copy()
    data, stepid = found
    data['consec'] = np.full(self._batch, self._part, np.int32)
    self._part += 1
    if self._part == self._consec:
      self._starts, self._part = None, 0
    return data, stepid

  def state(self) -> dict[str, Any]:
    """Returns the state as a JSON-able dict; take it with the replay's."""
    rng = self._rng and restore.encode_rng(self._rng.bit_generator.state)
    starts = None if self._starts is None else self._starts.tolist()
    return {'part': self._part, 'starts': starts, 'rng': rng}

  def load(self, state: dict[str, Any]) -> None:
    """Goes on from `state`, once the replay was restored exactly.

    Where steps got new addresses, or the batch size another value, leave it
    out: the stream then starts with fresh sequences.
    """
    starts = state['starts']
    if starts is not None and len(starts) == self._batch:
      self._starts, self._part = np.array(starts, np.int64), state['part']
    if self._rng is not None and state['rng'] is not None:
      self._rng.bit_generator.state = restore.decode_rng(state['rng'])
