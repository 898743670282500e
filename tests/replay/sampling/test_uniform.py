"""Uniform selector with chunks removed in any order."""

import numpy as np

from dreamer_tpu.replay.sampling.uniform import Uniform


def test_starts_after_random_removals():
  rng = np.random.default_rng(0)
  selector, live = Uniform(4), {}
  serial = 0
  for _ in range(500):
    live[serial] = int(rng.integers(0, 5))
    selector.insert(serial * 4 + np.arange(live[serial]))
    serial += int(rng.integers(1, 4))
    if rng.random() < 0.7 and live:
      gone = int(rng.choice(list(live)))
      selector.remove(gone)
      del live[gone]
    ids = {s * 4 + i for s, n in live.items() for i in range(n)}
    assert len(selector) == len(ids)
    if ids:
      assert set(selector.sample(rng, 20).tolist()) <= ids
  assert set(selector.sample(rng, 20 * len(ids)).tolist()) == ids
