"""Datasets of RLDS, read from the files that tensorflow_datasets prepares.

A dataset is a folder with `features.json` and *.tfrecord files of episodes.
Those have 'steps' with 'observation', 'action', 'reward', 'is_first', 'is_last'
and 'is_terminal'. Action and reward of a step follow its observation. Those of
the last step are not used.
"""

import functools
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from dreamer_tpu.errors import UserError
from dreamer_tpu.tools.data import tfrecords
from dreamer_tpu.tools.data.episodes import (
  FLAGS,
  BrokenEpisode,
  Entry,
  Episode,
  broken,
)

PREFIX = 'rlds:'
_FILE = 'features.json'
_STEPS = 'steps'

# Returns an array [T, ...] of the values of a feature in T steps.
Decode = Callable[[tfrecords.Values, int], np.ndarray]


class RldsSet:
  """Episodes of a dataset; see `Source`.

  Args:
    source: Folder of a dataset, or its name in TFDS_DATA_DIR, such as 'robot',
      'robot/config' or 'robot:1.0.0'.
  """

  agents = False
  sampled = False
  spaces = None

  def __init__(self, source: str):
    self._folder = _find(source)
    self.name = str(self._folder)
    self._features = _step_features(self._folder / _FILE)
    self._paths = sorted(self._folder.glob('*.tfrecord*'))
    if not self._paths:
      raise UserError(
        f"'{self.name}' holds no *.tfrecord file; others are not read."
      )
    self._late_rewards = 0

  def read(self) -> Iterator[Entry]:
    """Yields the episodes of all splits, in the order of their files."""
    for path in self._paths:
      with path.open('rb') as file:
        yield from self._read(path.name, file)
    if self._late_rewards:
      logging.warning(
        "'%s': %d episodes have a reward in their last step, which follows no "
        'action; it is not used.',
        self.name,
        self._late_rewards,
      )
      self._late_rewards = 0

  def _read(self, name: str, file: Any) -> Iterator[Entry]:
    records = tfrecords.records(file)
    number = 0
    while True:
      entry = f'{name}, episode {number}'
      try:
        record = next(records)
      except StopIteration:
        return
      except ValueError as error:
        yield entry, broken(str(error))
        return
      yield entry, functools.partial(self._episode, record)
      number += 1

  def _episode(self, record: bytes) -> Episode:
    given = tfrecords.parse(record)
    count = len(given[f'{_STEPS}/is_first'])
    arrays = {
      name: decode(given[f'{_STEPS}/{name}'], count)
      for name, decode in self._features.items()
      if f'{_STEPS}/{name}' in given
    }
    flags = {name: arrays[name].astype(bool) for name in FLAGS}
    if flags['is_first'][1:].any() or flags['is_last'][:-1].any():
      raise BrokenEpisode('it holds several episodes')
    self._late_rewards += bool(arrays['reward'][-1])
    return Episode(
      observations=_inside(arrays, 'observation'),
      actions={k: x[:-1] for k, x in _inside(arrays, 'action').items()},
      rewards=arrays['reward'][:-1],
      terminal=bool(flags['is_terminal'][-1]),
      whole=bool(flags['is_last'][-1]),
    )


def is_set(folder: epath.Path) -> bool:
  """Returns whether a folder holds a dataset of RLDS."""
  return (folder / _FILE).exists()


def _find(source: str) -> epath.Path:
  """Returns the folder of a dataset, of its newest version by default."""
  folder = epath.Path(source).expanduser()
  if is_set(folder):
    return folder
  root = epath.Path(
    os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  ).expanduser()
  name, _, version = source.partition(':')
  found = [
    path.parent
    for pattern in (f'{version or "*"}', f'*/{version or "*"}')
    for path in (root / name).glob(f'{pattern}/{_FILE}')
  ]
  if not found:
    raise UserError(
      f"There is no dataset '{source}' in {root} (TFDS_DATA_DIR); "
      f'tensorflow_datasets prepares it there: tfds build {name}'
    )
  return max(found, key=lambda path: re.findall(r'\d+', path.name))


def _step_features(path: epath.Path) -> dict[str, Decode]:
  """Returns the functions that decode the features of a step, by name."""
  try:
    features = json.loads(path.read_text())['featuresDict']['features']
    steps = features[_STEPS]['sequence']['feature']
    found = dict(_flatten(steps, ''))
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"'{path}' describes no episodes of steps.") from error
  for name in (*FLAGS, 'reward'):
    if name not in found:
      raise UserError(
        f"'{path}' has no feature '{name}' of a step; it has "
        f'{", ".join(sorted(found))}'
      )
  return found


def _flatten(
  feature: Mapping[str, Any], name: str
) -> Iterator[tuple[str, Decode]]:
  """Yields the names of the features that are arrays, and their functions."""
  if 'featuresDict' in feature:
    for key, child in feature['featuresDict']['features'].items():
      yield from _flatten(child, f'{name}/{key}' if name else key)
  elif 'image' in feature:
    yield name, _image
  elif 'classLabel' in feature:
    yield name, lambda values, count: _array(values, (count,), np.int64)
  elif 'tensor' in feature and feature['tensor'].get('encoding') in (
    None,
    'none',
  ):
    dimensions = feature['tensor'].get('shape', {}).get('dimensions', [])
    shape, dtype = tuple(map(int, dimensions)), feature['tensor']['dtype']
    if dtype != 'string' and min(shape, default=0) >= 0:
      yield name, lambda values, count: _array(values, (count, *shape), dtype)


def _array(values: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  if len(values) != np.prod(shape, dtype=np.int64):
    raise BrokenEpisode(f'has {len(values)} values where {list(shape)} are due')
  return np.asarray(values).astype(dtype).reshape(shape)


def _image(values: tfrecords.Values, count: int) -> np.ndarray:
  from PIL import Image

  if len(values) != count:
    raise BrokenEpisode(f'has {len(values)} images in {count} steps')
  images = [np.asarray(Image.open(io.BytesIO(x))) for x in values]
  return np.stack([x if x.ndim == 3 else x[..., None] for x in images])


def _inside(arrays: Mapping[str, np.ndarray], folder: str) -> dict[str, Any]:
  """Returns a feature, or the parts of a dict of features by name."""
  if folder in arrays:
    return {folder: arrays[folder]}
  prefix = f'{folder}/'
  return {
    k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)
  }
