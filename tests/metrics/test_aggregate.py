"""Reductions by name, NaN and threads."""

import math
import threading

import numpy as np
import pytest

from dreamer_tpu.metrics.aggregate import Aggregator


def test_reduces_by_name():
  aggregator = Aggregator()
  rows = np.random.default_rng(0).normal(size=100)
  for row in rows:
    aggregator.add(dict.fromkeys(('x', 'x/max', 'x/min'), row), 'train')
  assert aggregator.take() == {
    'train/x': pytest.approx(rows.mean()),
    'train/x/max': rows.max(),
    'train/x/min': rows.min(),
  }
  assert aggregator.take() == {}
  # Narrow types are summed in full precision.
  for _ in range(10_000):
    aggregator.add({'x': np.float32(0.1)}, 'train')
  mean = aggregator.take()['train/x']
  assert mean == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_nan_propagates():
  aggregator = Aggregator()
  for value in (1.0, math.nan, 2.0):
    aggregator.add({'a/max': value, 'b/min': value, 'c': value}, 'train')
  assert all(math.isnan(x) for x in aggregator.take().values())


def test_threads():
  aggregator = Aggregator()

  def add():
    for _ in range(1000):
      aggregator.add({'x': 3}, 'train')

  threads = [threading.Thread(target=add) for _ in range(4)]
  for thread in threads:
    thread.start()
  means = set()
  while any(thread.is_alive() for thread in threads):
    means |= set(aggregator.take().values())
  means |= set(aggregator.take().values())
  # A lost observation would be in the sum or in the count only.
  assert means == {3}
