"""Datasets of Minari, in its folder of datasets or any other."""

import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.envs import nested
from dreamer_tpu.errors import UserError
from dreamer_tpu.tools.data.episodes import BrokenEpisode, Entry, Episode

PREFIX = 'minari:'


class MinariSet:
  """Episodes of a dataset; see `Source`.

  Args:
    source: 'minari:ID' or a folder that holds `metadata.json` and `data`.
  """

  agents = False
  sampled = False

  def __init__(self, source: str):
    self.name = source
    minari = load_library()
    folder = source
    if source.startswith(PREFIX):
      name = source.removeprefix(PREFIX)
      folder = str(minari.storage.get_dataset_path(name))
      if not os.path.exists(folder):
        raise UserError(
          f"There is no dataset '{name}' in {minari.storage.get_dataset_path()}"
          f'; get it with: minari download {name}'
        )
    path = os.path.join(folder, 'data')
    try:
      self._storage = minari.dataset.minari_storage.MinariStorage.read(path)
    except (ValueError, KeyError, OSError, AssertionError) as error:
      raise UserError(f"'{folder}' is no Minari dataset: {error}") from error
    self.spaces = (
      self._storage.observation_space,
      self._storage.action_space,
    )

  def read(self) -> Iterator[Entry]:
    """Yields the episodes."""
    for i in range(int(self._storage.total_episodes)):
      yield f'episode {i}', functools.partial(self._episode, i)

  def _episode(self, number: int) -> Episode:
    (found,) = self._storage.get_episodes([number])
    obs, act = (
      nested.flatten_value(space, found[f'{k}s'], k, nested.flatten(space, k))
      for k, space in zip(('observation', 'action'), self.spaces, strict=True)
    )
    rewards = np.asarray(found['rewards'])
    ends = np.asarray(found['terminations']) | np.asarray(found['truncations'])
    lengths = {len(x) for x in act.values()} | {
      len(x) - 1 for x in obs.values()
    }
    if lengths != {len(rewards)}:
      raise BrokenEpisode(
        f'has {len(rewards)} rewards, but {sorted(lengths)} actions, or '
        'observations but one'
      )
    return Episode(
      observations=obs,
      actions=act,
      rewards=rewards,
      terminal=bool(found['terminations'][-1]),
      whole=bool(ends[-1]),
    )


def is_set(folder: epath.Path) -> bool:
  """Returns whether a folder holds a dataset of Minari."""
  return (folder / 'data' / 'metadata.json').exists()


def load_library() -> Any:
  """Returns Minari.

  Raises:
    UserError: It is not installed.
  """
  try:
    import minari
    import minari.dataset.minari_storage
    import minari.storage
  except ImportError as error:
    raise UserError(
      "Minari is not installed; pip install '.[data]' installs it."
    ) from error
  return minari
