"""The ratio of updates to environment steps."""

import json
from fractions import Fraction

import numpy as np
import pytest

from dreamer_tpu.run.ratio import Ratio


@pytest.mark.parametrize('ratio', [32, 0.1, 0.7, 1024.0, 7.7])
@pytest.mark.parametrize('batch_steps', [10, 16 * 64])
def test_never_drifts(ratio, batch_steps):
  rng = np.random.default_rng(0)
  updates = Ratio(ratio, batch_steps)
  steps, total = 0, updates(0)
  # The decimal as the user wrote it: 0.1 is a tenth.
  rate = Fraction(str(ratio)) / batch_steps
  for increment in rng.integers(0, 200, 50_000).tolist():
    steps += increment
    total += updates(steps)
    assert total == 1 + steps * rate.numerator // rate.denominator


def test_a_third_is_a_third():
  updates = Ratio(1 / 3, 1)
  assert updates(0) == 1
  assert sum(updates(3 * i) for i in range(1, 100_001)) == 100_000


def test_a_million_increments():
  rng = np.random.default_rng(1)
  updates = Ratio(0.3, 10)
  steps, total = 0, updates(0)
  for increment in rng.integers(0, 9, 1_000_000).tolist():
    steps += increment
    total += updates(steps)
  assert total == 1 + steps * 3 // 100


def test_no_burst_for_the_steps_before_the_first_call():
  updates = Ratio(64, 64)
  assert updates(5000) == 1
  assert updates(5000) == 0
  assert updates(5004) == 4


def test_zero_never_trains():
  updates = Ratio(0, 64)
  assert [updates(x) for x in (0, 100, 10**9)] == [0, 0, 0]


def reload(updates, ratio=0.7):
  result = Ratio(ratio, 3)
  result.load(json.loads(json.dumps(updates.state())))
  return result


def test_resumes_from_its_state():
  straight, resumed = Ratio(0.7, 3), reload(Ratio(0.7, 3))
  for steps in range(0, 5000, 7):
    assert straight(steps) == resumed(steps)
    resumed = reload(resumed)


def test_resumes_with_another_ratio():
  updates = Ratio(0.7, 3)
  updates(0)
  updates(10)  # 10 * 0.7 / 3 = 2 + 1 / 3
  updates = reload(updates, ratio=2)
  assert [updates(10 + x) for x in (0, 1, 2, 3)] == [0, 1, 0, 1]


def test_resumes_from_an_old_checkpoint():
  updates = Ratio(2, 3)
  updates.load({'steps': 40, 'carry': [10, 30]})
  assert [updates(x) for x in (40, 41, 42)] == [0, 1, 0]


def test_steps_never_decrease():
  updates = Ratio(1, 1)
  updates(10)
  with pytest.raises(ValueError, match='decreased from 10 to 9'):
    updates(9)
