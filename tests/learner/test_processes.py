"""Several hosts compute what one would: real processes on loopback."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import learner_pod, small

ROOT = pathlib.Path(__file__).parents[2]


def run(mode, directory, processes, devices, model=1):
  """Runs the program to its end in several processes."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    coordinator = f'localhost:{s.getsockname()[1]}'
  env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
  command = [sys.executable, learner_pod.__file__, mode, str(directory)]
  numbers = [str(devices), str(model), coordinator, str(processes)]
  started = [
    subprocess.Popen(
      [*command, *numbers, str(i)],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(processes)
  ]
  try:
    for process in started:
      out, _ = process.communicate(timeout=900)
      assert process.returncode == 0, out
  finally:
    for process in started:
      process.kill()


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  directory = tmp_path_factory.mktemp('alone')
  run('same_batches', directory, 1, 1)
  return directory


@pytest.mark.parametrize(
  ('processes', 'devices', 'model'), [(1, 8, 1), (4, 2, 1), (2, 4, 2)]
)
def test_same_update(tmp_path, alone, processes, devices, model):
  run('same_batches', tmp_path, processes, devices, model)
  expected, actual = (
    dict(np.load(x / 'params.npz')) for x in (alone, tmp_path)
  )
  worst = max(small.difference(actual, expected).values())
  assert worst < 1e-4
  metrics = [
    json.loads((x / 'metrics.json').read_text()) for x in (alone, tmp_path)
  ]
  assert metrics[1] == pytest.approx(metrics[0], rel=1e-4, abs=1e-5)
  # Every process has got the latents of its own rows.
  deter = np.concatenate(
    [np.load(tmp_path / f'deter-{i}.npy') for i in range(processes)]
  )
  np.testing.assert_allclose(
    deter, np.load(alone / 'deter-0.npy'), rtol=1e-4, atol=1e-5
  )


def test_rows_stay_with_their_host(tmp_path):
  run('tags', tmp_path, 2, 2)
  for i in range(2):
    result = json.loads((tmp_path / f'tags-{i}.json').read_text())
    tags = [tag for shard in result['seen'] for tag in shard]
    assert len(tags) == 4 * small.ROWS // 2 * (small.STEPS + 1)
    assert {tag // learner_pod.HOST for tag in tags} == {i + 1}
    assert result['kept'] > small.STEPS


def test_all_hosts_know_the_same(tmp_path):
  run('rounds', tmp_path, 3, 1)
  results = [
    json.loads((tmp_path / f'rounds-{i}.json').read_text()) for i in range(3)
  ]
  assert results[0] == results[1] == results[2]
  known, rest, flags = results[0]
  steps, ready, stop, times = zip(*known, strict=True)
  # A value that a host sends reaches all hosts one round later.
  assert list(steps) == [0, 30, 33, 36, 39]
  assert list(ready) == [False, False, False, True, True]
  assert list(stop) == [False, False, False, False, True]
  assert list(times) == sorted(times)
  assert rest == 42 + 3
  assert flags == [[0, 1, 2], 0]
