"""Latents of recorded episodes, which no policy computed while acting."""

import heapq
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from dreamer_tpu.agent import Agent
from dreamer_tpu.agent.ops import backend
from dreamer_tpu.learner.steps import select_backend, step_spec

Episode = MutableMapping[str, np.ndarray]

# Size of a compiled pass. More rows hold more episodes at once.
_ROWS, _LENGTH = 16, 64


class _Piece(NamedTuple):
  """Steps of an episode and their place in a pass."""

  episode: int
  steps: slice
  row: int
  columns: slice


class LatentPass:
  """Computes latents as the policy does while it acts.

  Args:
    agent: The agent's functions.
    params: Weights of the policy, from `Learner.publish`.
    seed: Seed of the samples of the latents.
    device: Device of the weights.
  """

  def __init__(
    self, agent: Agent, params: Any, *, seed: int, device: jax.Device
  ):
    self._agent = agent
    self._params = params
    self._device = device
    self._seed = jax.device_put(np.uint32(seed), device)
    spec = step_spec(agent)
    self._latents = {k: spec[k] for k in agent.latent_spec()}
    keys = {*agent.policy_keys, *agent.act_space, 'is_first'}
    self._inputs = {k: spec[k] for k in sorted(keys)}
    self._passes = 0
    self._observe = jax.jit(self._observe_fn, donate_argnums=1)

  def __call__(self, episodes: Sequence[Episode]) -> None:
    """Adds latents to episodes.

    Args:
      episodes: Arrays [T, ...] by key, all steps of an episode. Each gets
        'latent/NAME' arrays [T, ...] as well.
    """
    lengths = [len(x['is_first']) for x in episodes]
    for length, episode in zip(lengths, episodes, strict=True):
      for key, (shape, dtype) in self._latents.items():
        episode[key] = np.empty((length, *shape), _dtype(dtype))
    carry = jax.device_put(self._agent.initial_carry(_ROWS), self._device)
    for pieces in _passes(lengths):
      batch = {
        k: np.zeros((_ROWS, _LENGTH, *shape), dtype)
        for k, (shape, dtype) in self._inputs.items()
      }
      for piece in pieces:
        for key, array in batch.items():
          steps = episodes[piece.episode][key][piece.steps]
          array[piece.row, piece.columns] = steps
      inputs = jax.device_put((batch, np.uint32(self._passes)), self._device)
      carry, latents = self._observe(self._params, carry, *inputs, self._seed)
      self._passes += 1
      for key, array in jax.device_get(latents).items():
        for piece in pieces:
          steps = array[piece.row, piece.columns]
          episodes[piece.episode][key][piece.steps] = steps

  def _observe_fn(self, params, carry, batch, count, seed):
    key = jax.random.fold_in(jax.random.key(seed), count)
    with backend.using(select_backend(self._device.platform, 1)):
      return self._agent.observe(params, carry, batch, key)


def _passes(lengths: Sequence[int]) -> Iterator[list[_Piece]]:
  """Yields the pieces of each pass: rows hold episodes one after another."""
  ends = [(0, row) for row in range(_ROWS)]
  places = []
  for episode in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
    start, row = heapq.heappop(ends)
    places.append((episode, row, start))
    heapq.heappush(ends, (start + lengths[episode], row))
  for first in range(0, max(end for end, _ in ends), _LENGTH):
    pieces = []
    for episode, row, start in places:
      begin = max(first, start)
      end = min(first + _LENGTH, start + lengths[episode])
      if begin < end:
        steps = slice(begin - start, end - start)
        columns = slice(begin - first, end - first)
        pieces.append(_Piece(episode, steps, row, columns))
    yield pieces


def _dtype(name: str) -> np.dtype:
  return np.dtype(getattr(ml_dtypes, name, name))
