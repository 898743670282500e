"""Iterates over training batches, cut from sampled sequences."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from dreamer_tpu.errors import UserError
from dreamer_tpu.replay.buffer import Replay
from dreamer_tpu.replay.rng import make_rng, rng_state, set_rng_state


class Stream:
  """Endless iterator over batches.

  Each sampled sequence is used in `consec` parts of context + length steps.
  Part i starts at step i * length, so the last `context` steps of a part are
  the first of the next. All rows of a batch have equal part numbers. Parts are
  copied on request. If the replay has dropped one of the sequences by then,
  the whole batch starts over with new sequences.
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
    """Starts with new sequences.

    Args:
      replay: Source of the sequences.
      batch: Sequences per batch.
      length: Training steps per part.
      context: Steps before those.
      consec: Parts per sequence.
      online: Whether to draw from the replay's online queue.
      seed: Seed of a separate generator, so that other samples of the replay
        are unaffected. None draws with the replay's generator.

    Raises:
      UserError: The replay's sequences are too short.
    """
    if context + length * consec > replay.length:
      raise UserError(
        f'{consec} parts of {length} steps and {context} of context need '
        f'sequences of {context + length * consec} steps, but the replay has '
        f'sequences of {replay.length}'
      )
    self._replay = replay
    self._batch = batch
    self._length = length
    self._steps = context + length
    self._consec = consec
    self._online = online
    self._rng = None if seed is None else make_rng(seed)
    self._starts: np.ndarray | None = None
    self._part = 0

  def __iter__(self) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    return self

  def __next__(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the next batch.

    Returns:
      New arrays [batch, context + length, ...] by key, including the number
      of the part, 'consec', int32 [batch]. Addresses of the steps, int64
      [batch, context + length].

    Raises:
      ValueError: The replay holds no sequence yet.
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
    """Returns the state as JSON values, valid with a snapshot taken now."""
    rng = self._rng and rng_state(self._rng)
    starts = None if self._starts is None else self._starts.tolist()
    return {'part': self._part, 'starts': starts, 'rng': rng}

  def load(self, state: dict[str, Any]) -> None:
    """Resumes from `state` after the replay was restored exactly.

    If the batch size changed, the stream starts with new sequences. Do not
    call this if steps got new addresses.
    """
    starts = state['starts']
    if starts is not None and len(starts) == self._batch:
      self._starts, self._part = np.array(starts, np.int64), state['part']
    if self._rng is not None and state['rng'] is not None:
      set_rng_state(self._rng, state['rng'])
