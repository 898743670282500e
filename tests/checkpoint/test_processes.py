"""Saves in real processes: killed, out of disk space, in pairs."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dreamer_tpu.checkpoint import layout
from dreamer_tpu.checkpoint.manager import Checkpointer
from dreamer_tpu.errors import UserError
from tests.helpers import checkpoint_pod, pods

ROOT = pathlib.Path(__file__).parents[2]


def start(mode, directory, *args):
  env = {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'OMP_NUM_THREADS': '1',
  }
  env.pop('XLA_FLAGS', None)
  command = [
    sys.executable,
    checkpoint_pod.__file__,
    mode,
    str(directory),
    *args,
  ]
  return subprocess.Popen(
    command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


def kill(process):
  process.send_signal(signal.SIGKILL)
  process.wait()


def check_step(checkpointer, step):
  shapes = jax.eval_shape(lambda: checkpoint_pod.agent(step))
  restored = checkpointer.restore(step, shapes)
  assert restored.run == {'updates': step}
  kernel = restored.agent['params']['rssm']['kernel']
  np.testing.assert_array_equal(kernel, checkpoint_pod.values(step))


def test_kill_while_the_replay_is_written(tmp_path):
  process = start('hang', tmp_path)
  try:
    assert process.stdout.readline() == 'writing\n'
  finally:
    kill(process)
  assert (tmp_path / 'chunk-2').exists()
  left = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  assert len(left - {'1', 'lock'}) == 1  # the unfinished step
  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    assert checkpointer.steps() == [1]
    check_step(checkpointer, 1)
    checkpointer.save(2, checkpoint_pod.agent(2), {'updates': 2})
    assert not checkpointer.wait()[0].error
    check_step(checkpointer, 2)
  left = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  assert left == {'1', '2', 'lock'}


def test_kill_at_random_moments(tmp_path):
  rng = random.Random(0)
  newest = 0
  for _ in range(3):
    process = start('forever', tmp_path)
    try:
      committed = int(process.stdout.readline())
      time.sleep(rng.uniform(0, 0.2))
    finally:
      kill(process)
    lines = [int(x) for x in process.stdout.read().split()]
    committed = max([committed, *lines])
    assert committed > newest
    with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
      newest = max(checkpointer.steps())
      assert newest >= committed
      check_step(checkpointer, newest)


def test_full_disk(tmp_path):
  process = start('full', tmp_path)
  out, err = process.communicate(timeout=600)
  assert process.returncode == 0, err
  first, second, third = [json.loads(line) for line in out.splitlines()]
  assert first == ['', [1]]
  assert second[0]
  assert '\n' not in second[0]
  assert second[1] == [1]
  assert third == ['', [1, 3]]
  assert 'Saving step 2 failed' in err
  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    for step in (1, 3):
      check_step(checkpointer, step)


def test_second_run_on_one_folder_is_refused(tmp_path):
  process = start('hang', tmp_path)
  try:
    assert process.stdout.readline() == 'writing\n'
    with pytest.raises(UserError, match=f'process {process.pid}'):
      Checkpointer(tmp_path / 'checkpoints')
  finally:
    kill(process)
  Checkpointer(tmp_path / 'checkpoints').close()


def test_two_processes_commit_one_step(tmp_path):
  coordinator = f'localhost:{pods.free_port()}'
  pair = [start('together', tmp_path, str(i), coordinator) for i in range(2)]
  try:
    results = [process.communicate(timeout=600) for process in pair]
  finally:
    for process in pair:
      process.kill()
  manifests = {str(i): {'chunks': [f'from-{i}']} for i in range(2)}
  for (out, err), process in zip(results, pair, strict=True):
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == ['', True, [{'7': manifests}]]
  folder = layout.find_step(tmp_path)
  assert list(layout.read_manifests(folder)) == ['0', '1']
  with Checkpointer(tmp_path / 'checkpoints') as checkpointer:
    check_step(checkpointer, 7)
