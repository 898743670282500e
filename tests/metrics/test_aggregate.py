"""Reductions by name, NaN and threads."""

import math
import threading

import numpy as np
import pytest

from dreamer_tpu.metrics.aggregate import Aggregator


def test_aggregator_reduces_by_name():
  aggregator = Aggregator()
  rows = np.random.default_rng(0).normal(size=100)
  names = ('x', 'x/max', 'x/min', 'x/sum', 'x/last')
  for row in rows:
    aggregator.add({name: np.float64(row) for name in names}, prefix='train')
  result = aggregator.result(reset=False)
  reduced = (rows.mean(), rows.max(), rows.min(), rows.sum(), rows[-1])
  for name, value in zip(names, reduced, strict=True):
    assert result[f'train/{name}'] == pytest.approx(value)
  assert aggregator.result() == result
  assert aggregator.result() == {}


def test_aggregator_shows_nan():
  aggregator = Aggregator()
  for value in (1.0, math.nan, 2.0):
    aggregator.add({'a/max': value, 'b/min': value, 'c': value})
  assert all(math.isnan(x) for x in aggregator.result().values())


def test_aggregator_from_threads():
  aggregator = Aggregator()

  def add():
    for _ in range(1000):
      aggregator.add({'n/sum': 1})

  threads = [threading.Thread(target=add) for _ in range(4)]
  total = 0.0
  for thread in threads:
    thread.start()
  while any(thread.is_alive() for thread in threads):
    total += aggregator.result().get('n/sum', 0)
  total += aggregator.result().get('n/sum', 0)
  assert total == 4000
