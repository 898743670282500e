"""The ratio of updates to environment steps."""

import json
from fractions import Fraction

import numpy as np
import pytest

from dreamer_tpu.run.ratio import Ratio


@pytest.mark.parametrize('ratio', [32, 0.1, 1 / 3, 1024.0, 7.7])
def test_never_drifts(ratio):
  rng = np.random.default_rng(0)
  limiter = Ratio(ratio, 16 * 64)
  steps, total = 0, limiter(0)
  rate = Fraction(str(ratio)) / 1024
  increments = rng.integers(0, 200, 100_000).tolist()
  for i, increment in enumerate(increments):
    steps += increment
    total += limiter(steps)
    if i % 1000 == 0:
      assert total == 1 + (steps * rate).__floor__()
  assert total == 1 + (steps * rate).__floor__()


def test_a_million_increments():
  rng = np.random.default_rng(1)
  limiter = Ratio(0.3, 10)
  steps, total = 0, limiter(0)
  for increment in rng.integers(0, 9, 1_000_000).tolist():
    steps += increment
    total += limiter(steps)
  assert total == 1 + steps * 3 // 100


def test_no_burst_for_the_steps_before_the_first_call():
  limiter = Ratio(64, 64)
  assert limiter(5000) == 1
  assert limiter(5000) == 0
  assert limiter(5004) == 4


def test_zero_never_trains():
  limiter = Ratio(0, 64)
  assert [limiter(x) for x in (0, 100, 10**9)] == [0, 0, 0]


def test_state_survives_json_and_goes_on():
  one = Ratio(0.7, 3)
  for steps in range(0, 100, 7):
    one(steps)
  two = Ratio(0.7, 3)
  two.load(json.loads(json.dumps(one.state())))
  for steps in range(100, 500, 11):
    assert one(steps) == two(steps)


def test_steps_never_decrease():
  limiter = Ratio(1, 1)
  limiter(10)
  with pytest.raises(ValueError, match='decreased from 10 to 9'):
    limiter(9)
