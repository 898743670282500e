"""Folders of episodes as NumPy archives, one per episode.

An archive has an array per key, as older versions of Dreamer write it: the
observations, the actions, 'reward', and 'is_terminal' or 'discount'. All arrays
have a row per observation. The action and the reward of a row lead to its
observation, so the first ones are 0. An archive may also leave these out: then
the action and the reward of a row follow its observation.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from dreamer_tpu.errors import UserError
from dreamer_tpu.tools.data.episodes import (
  FLAGS,
  Arrays,
  BrokenEpisode,
  Entry,
  Episode,
  Names,
  split,
)


class NpzFolder:
  """Episodes of a folder, by name of the file; see `Source`."""

  agents = True
  sampled = False
  spaces = None

  def __init__(self, folder: epath.Path, names: Names):
    self.name = str(folder)
    self._paths = sorted(folder.glob('*.npz'))
    self._known = names
    if not self._paths:
      raise UserError(f"'{folder}' holds no *.npz file.")

  def read(self) -> Iterator[Entry]:
    """Yields the episodes."""
    for path in self._paths:
      yield path.name, functools.partial(_read, path, self._known)


def load(path: epath.Path) -> Arrays:
  """Returns the arrays of an archive, without pickles."""
  with path.open('rb') as file, np.load(file, allow_pickle=False) as archive:
    return {key: _numbers(archive, key) for key in archive}


def _numbers(archive: Mapping[str, np.ndarray], key: str) -> np.ndarray:
  try:
    return archive[key]
  except ValueError as error:
    if 'Object arrays' not in str(error):
      raise
    raise BrokenEpisode(
      f'{key!r} holds Python objects (a pickle), which are not read; save '
      'arrays of numbers, or leave it out'
    ) from error


def save(path: epath.Path, episode: Episode) -> None:
  """Writes an episode."""
  count = len(episode.rewards)
  arrays = {
    **episode.observations,
    **{k: shift(x) for k, x in episode.actions.items()},
    'reward': shift(episode.rewards),
    'is_first': np.arange(count + 1) == 0,
    'is_last': np.arange(count + 1) == count,
    'is_terminal': (np.arange(count + 1) == count) & episode.terminal,
  }
  with path.open('wb') as file:
    np.savez_compressed(file, **arrays)


def shift(array: np.ndarray) -> np.ndarray:
  """Returns an array [T, ...] as [T + 1, ...], with zeros in the first row."""
  return np.concatenate([np.zeros_like(array[:1]), array])


def _read(path: epath.Path, names: Names) -> Episode:
  arrays = load(path)
  obs, act = split(arrays, names)
  if 'reward' not in arrays:
    raise BrokenEpisode(f"has no 'reward' (it has {', '.join(sorted(arrays))})")
  rows = _rows({k: obs[k] for k in names.observations if k in obs} or obs)
  first, *ends = (np.ravel(arrays.get(k, False)) for k in FLAGS)
  if first[1:].any() or any(x[:-1].any() for x in ends):
    raise BrokenEpisode('holds several episodes; write a file for each')
  return Episode(
    observations={k: x for k, x in obs.items() if x.shape[:1] == (rows,)},
    actions={k: _following(k, x, rows) for k, x in act.items()},
    rewards=_following('reward', arrays['reward'], rows),
    terminal=_is_terminal(arrays),
  )


def _rows(obs: Mapping[str, np.ndarray]) -> int:
  """Returns the number of rows, which all observations share."""
  rows = {k: len(x) if x.ndim else 0 for k, x in obs.items()}
  if len(set(rows.values())) != 1 or not min(rows.values()):
    found = ', '.join(f'{n} of {k!r}' for k, n in rows.items()) or 'none'
    raise BrokenEpisode(
      f'needs observations of equal length, and has {found}; leave out arrays '
      'that are no observations'
    )
  return next(iter(rows.values()))


def _following(name: str, array: np.ndarray, rows: int) -> np.ndarray:
  """Returns [T, ...] rows that follow the observations [T + 1, ...].

  Raises:
    UserError: The first row is not 0. Then other episodes, where it is 0 by
      chance, would be read wrongly.
  """
  if len(array) == rows - 1:
    return array
  if len(array) != rows:
    raise BrokenEpisode(
      f'has {rows} observations, but {len(array)} of {name!r}'
    )
  if np.any(array[0]):
    raise UserError(
      f'{name!r} is {_short(array[0])} in the first row, which nothing '
      'precedes; if rows follow their observation, leave out the last row of '
      "actions and 'reward' in all files."
    )
  return array[1:]


def _is_terminal(arrays: Mapping[str, np.ndarray]) -> bool:
  for name in ('is_terminal', 'terminated'):
    if name in arrays:
      return bool(np.ravel(arrays[name])[-1])
  if 'discount' in arrays:
    return bool(np.ravel(arrays['discount'])[-1] == 0)
  raise BrokenEpisode(
    "has neither 'is_terminal' nor 'discount'; add 'is_terminal', whose last "
    'row is true, or false after a time limit'
  )


def _short(value: Any) -> str:
  return str(value.tolist())[:40]
