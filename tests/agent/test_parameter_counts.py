"""Tests the number of parameters of every module, size and suite."""

import collections
import csv
import math

import jax
import pytest
from flax import nnx

from configs import base, sizes
from dreamer_tpu.agent import Agent, Space
from tests.helpers.golden import FOLDER, MODULES

IMAGE = {'image': Space(shape=(64, 64, 3), dtype='uint8')}
SUITES = {
  'atari': ({'image': Space(shape=(96, 96, 1), dtype='uint8')}, 18),
  'crafter': (IMAGE, 17),
  'dmc_vision': (IMAGE, 6.0),
  'dmc_proprio': (
    {
      'orientations': Space(shape=(14,), dtype='float32'),
      'height': Space(shape=(), dtype='float32'),
      'velocity': Space(shape=(9,), dtype='float32'),
    },
    6.0,
  ),
}
NAMES = dict(
  zip(
    MODULES,
    ['encoder', 'rssm', 'decoder', 'reward', 'cont', 'policy', 'value'],
    strict=False,
  )
)

with open(FOLDER / 'parameter_counts.csv') as file:
  ROWS = list(csv.DictReader(file))


def count(suite: str, size: str) -> dict[str, int]:
  obs, action = SUITES[suite]
  if isinstance(action, int):
    act = {'action': Space(shape=(), dtype='int32', classes=action)}
  else:
    act = {'action': Space(shape=(int(action),), dtype='float32')}
  config = base.base()
  sizes.PRESETS[size](config)
  variables = nnx.to_pure_dict(Agent(obs, act, config.agent).variables)
  counts = collections.Counter()
  for module, tree in variables.items():
    counts[module] += sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
  return counts


@pytest.mark.parametrize('row', ROWS, ids=lambda r: f'{r["suite"]}-{r["size"]}')
def test_counts(row):
  counts = count(row['suite'], row['size'])
  expected = {NAMES[k]: int(row[k]) for k in MODULES if k in row}
  assert counts == expected
  assert sum(counts.values()) == int(row['total'])
