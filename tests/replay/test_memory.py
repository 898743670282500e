"""Memory of a full replay, measured in a process of its own."""

import json
import subprocess
import sys

import pytest

CODE = """if True:
  import json
  import sys
  import numpy as np
  import psutil
  from dreamer_tpu.replay import Replay, Sampling, step_bytes

  shape, chunksize, fracs = json.loads(sys.argv[1])
  spec = {'obs': (shape, 'uint8'), 'reward': ((), 'float32')}
  spec |= {k: ((), 'bool') for k in ('is_first', 'is_last')}
  sampling = Sampling(**fracs)
  per_step = step_bytes(spec, chunksize, sampling)
  capacity = int(150e6 / per_step)
  replay = Replay(
    spec, length=40, capacity=capacity, chunksize=chunksize, online=True,
    streams=16, seed=0, sampling=sampling,
  )
  step = {k: np.zeros((16, *shape), v) for k, (shape, v) in spec.items()}
  process, peak = psutil.Process(), 0
  before = process.memory_info().rss
  for i in range(int(2.5 * capacity / 16)):
    replay.add(step)
    if i % 50 == 49:
      replay.sample(1)
      peak = max(peak, process.memory_info().rss - before)
  assert replay.stats()['fill'] > 0.8
  print(peak / per_step / capacity)
"""


@pytest.mark.parametrize(
  ('shape', 'chunksize', 'fracs'),
  [
    ((64, 64, 3), 512, {}),
    ((2000,), 1024, {}),
    ((2000,), 32, {}),
    ((2000,), 1024, {'uniform': 0.5, 'priority': 0.5}),
  ],
)
def test_a_full_replay_takes_what_was_estimated(shape, chunksize, fracs):
  output = subprocess.check_output(
    [sys.executable, '-c', CODE, json.dumps([shape, chunksize, fracs])],
    text=True,
  )
  assert 0.9 < float(output) < 1.05
