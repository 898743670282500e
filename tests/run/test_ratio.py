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
  for new in rng.integers(0, 200, 50_000).tolist():
    steps += new
    total += updates(new)
    assert total == 1 + steps * rate.numerator // rate.denominator


def test_a_third_is_a_third():
  updates = Ratio(1 / 3, 1)
  assert updates(0) == 1
  assert sum(updates(3) for _ in range(100_000)) == 100_000


def test_a_million_increments():
  rng = np.random.default_rng(1)
  updates = Ratio(0.3, 10)
  steps, total = 0, updates(0)
  for new in rng.integers(0, 9, 1_000_000).tolist():
    steps += new
    total += updates(new)
  assert total == 1 + steps * 3 // 100


def test_no_burst_for_the_steps_before_the_first_call():
  updates = Ratio(64, 64)
  assert [updates(x) for x in (5000, 0, 4)] == [1, 0, 4]


def test_zero_never_trains():
  updates = Ratio(0, 64)
  assert [updates(x) for x in (0, 100, 10**9)] == [0, 0, 0]


def reload(updates, ratio=0.7):
  result = Ratio(ratio, 3)
  result.load(json.loads(json.dumps(updates.state())))
  return result


def test_resumes_from_its_state():
  straight, resumed = Ratio(0.7, 3), reload(Ratio(0.7, 3))
  for _ in range(1000):
    assert straight(7) == resumed(7)
    resumed = reload(resumed)


def test_resumes_with_another_ratio():
  updates = Ratio(0.7, 3)
  updates(0)
  updates(10)  # 10 * 0.7 / 3 = 2 + 1 / 3
  updates = reload(updates, ratio=2)
  assert [updates(x) for x in (0, 1, 1, 1)] == [0, 1, 0, 1]


def test_no_burst_after_a_pause():
  updates = Ratio(2, 3)
  updates(0)
  updates(2)  # 1 + 1 / 3
  paused = reload(updates, ratio=0)
  assert paused(1000) == 0
  resumed = reload(paused, ratio=2)
  assert [resumed(x) for x in (1, 1, 1)] == [1, 0, 1]


def test_resumes_from_an_old_checkpoint():
  updates = Ratio(2, 3)
  updates.load({'steps': 40, 'carry': [10, 30]})
  assert [updates(x) for x in (0, 1, 1)] == [0, 1, 0]
