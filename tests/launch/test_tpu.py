"""launch/tpu.sh in a stand-in cloud, with the real program as two hosts."""

import contextlib
import os
import re
import signal

import pytest

from dreamer_tpu.checkpoint import layout
from tests.helpers import pods


def hosts():
  """Returns the environment in which two workers find each other."""
  return {
    'POLL': '1',
    'GCLOUD_FLAGS': '--spot',
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': '1',
    'JAX_COORDINATOR_ADDRESS': f'localhost:{pods.free_port()}',
    'JAX_NUM_PROCESSES': '2',
  }


def test_a_run_survives_its_slice_and_its_terminal_until_it_is_stopped(cloud):
  command = [
    *('train', 'pod', 'v5litepod-16', 'us-west4-a', '--logdir=gs://run'),
    *('--config=configs/gym.py:debug', '--config.run.steps=1e6'),
    *('--config.run.save_every=5', '--config.metrics.outputs=log,jsonl'),
    # Fills the replay without learning, so that nothing has to be compiled.
    *('--config.run.train_ratio=0', '--config.policy.mode=random'),
  ]
  environment = hosts()
  process = cloud.start(*command, **environment)
  checkpoints = cloud.folder / 'run/checkpoints'
  cloud.wait(lambda: layout.steps(checkpoints), process)
  going = cloud.pids()
  # Once they are gone, an ACTIVE slice would mean that the run has failed.
  cloud.write(state='SUSPENDED')
  for each in going:
    with contextlib.suppress(ProcessLookupError):
      os.kill(each, signal.SIGKILL)

  cloud.wait(lambda: re.search('Restoring.* step ', cloud.log(), re.S), process)
  going = cloud.pids()
  restored = layout.steps(checkpoints)[-1]
  cloud.wait(lambda: layout.steps(checkpoints)[-1] > restored, process)
  process.kill()
  earlier, _ = process.communicate(timeout=20)
  assert earlier.count('requesting pod') == 2

  process = cloud.start(*command, **environment)
  assert 'showing that run' in process.stdout.readline()
  assert cloud.pids() == going
  cloud.end('stop', 'pod', 'us-west4-a')
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 75, output

  assert output.count('Restoring the checkpoint') == 1
  assert 'on each of 2 hosts' in output
  assert 'stopped, run again to resume' in output
  requests = cloud.calls('queued-resources')
  changes = [x for x in requests if ' describe ' not in x]
  assert [x.split()[4] for x in changes] == ['create', 'delete', 'create']
  assert changes[0] == (
    '--quiet compute tpus queued-resources create pod --node-id=pod '
    '--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite '
    '--spot --zone=us-west4-a'
  )


def test_an_error_in_the_run_ends_it(cloud):
  process = cloud.start(
    *('train', 'pod', 'v6e-8', 'us-east5-b', '--logdir=gs://run'),
    *('--config=configs/gym.py:debug', "--config.task=gym_It's-v0"),
    **hosts(),
  )
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 1, output
  assert "gym_It's-v0" in output.splitlines()[-1]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'launch/tpu.sh train NAME TYPE ZONE'),
    (['train', 'a', 'v4-8', 'z', '--logdir=runs/a'], 'logdir=gs://BUCKET/RUN'),
    (['train', 'a', 'tpu7x-8', 'z', '--logdir=gs://a'], 'use launch/gce.sh'),
  ],
)
def test_bad_arguments_request_nothing(cloud, arguments, message):
  assert message in cloud.end(*arguments, code=1)
  assert not cloud.calls()
