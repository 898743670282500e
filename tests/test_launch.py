"""launch/tpu.sh with a fake gcloud whose workers are local processes.

The real program runs as two hosts. Only the cloud is fake: a request is active
at once, and the test takes the slice away.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from dreamer_tpu.checkpoint import layout
from tests.helpers import pods

ROOT = pathlib.Path(__file__).parents[1]

GCLOUD = r"""#!/usr/bin/env bash
echo "$*" >>"$CLOUD/calls"
for word; do case $word in
  --worker=all) workers='0 1' ;;
  --worker=*) workers=${word#*=} ;;
  --command=*) command=${word#*=} ;;
esac; done
[ "$1 $2" = 'compute tpus' ] || exit 2
case "$3 $4" in
  'queued-resources describe') cat "$CLOUD/state" ;;
  'queued-resources create')
    [ ! -e "$CLOUD/state" ] || exit 1
    mkdir -p "$CLOUD/0" "$CLOUD/1"
    echo ACTIVE >"$CLOUD/state" ;;
  'queued-resources delete')  # Processes there may still be writing.
    until rm -rf "$CLOUD/state" "$CLOUD/0" "$CLOUD/1"; do sleep 0.1; done ;;
  'tpu-vm scp')
    for i in $workers; do cp "$5" "$CLOUD/$i/${6#*:}" || exit 1; done ;;
  'tpu-vm ssh')
    grep -q ACTIVE "$CLOUD/state" || exit 255
    set -o pipefail  # Lasts until no process holds the output.
    for i in $workers; do
      (cd "$CLOUD/$i" && JAX_PROCESS_ID=$i bash -c "${command//gs:/$CLOUD}") |
        cat || exit
    done ;;
  *) exit 2 ;;
esac
"""

# Installs on a worker; here everything is installed already.
SUDO = f"""#!/usr/bin/env bash
ln -s {sys.prefix} dreamer_tpu/.venv
"""


@pytest.fixture
def cloud(tmp_path):
  bin_ = tmp_path / 'bin'
  bin_.mkdir()
  for name, text in {'gcloud': GCLOUD, 'sudo': SUDO}.items():
    (bin_ / name).write_text(text)
    (bin_ / name).chmod(0o755)
  yield tmp_path
  for process in running(tmp_path):
    os.kill(process, signal.SIGKILL)


def running(cloud):
  """Returns the processes of the run in this cloud."""
  pids = [path.read_text() for path in cloud.glob('[01]/dreamer_tpu/.pid')]
  return [int(x) for x in pids if pathlib.Path(f'/proc/{x.strip()}').exists()]


def log(cloud):
  """Returns the output of the run on worker 0."""
  path = cloud / '0/dreamer_tpu/run.log'
  return path.read_text() if path.exists() else ''


def wait_for(condition, process):
  deadline = time.monotonic() + 240
  while not condition():
    assert time.monotonic() < deadline
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.2)


def start(cloud, *arguments):
  environment = {
    **os.environ,
    'PATH': f'{cloud}/bin:{os.environ["PATH"]}',
    'CLOUD': str(cloud),
    'POLL': '1',
    'GCLOUD_FLAGS': '--spot',
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': '1',
    'JAX_COORDINATOR_ADDRESS': f'localhost:{pods.free_port()}',
    'JAX_NUM_PROCESSES': '2',
  }
  return subprocess.Popen(
    ['bash', ROOT / 'launch/tpu.sh', *arguments],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def test_a_run_survives_its_slice_and_its_terminal_until_it_is_stopped(cloud):
  command = [
    *('train', 'pod', 'v5litepod-16', 'us-west4-a', '--logdir=gs://run'),
    *('--config=configs/gym.py:debug', '--config.run.steps=1e6'),
    *('--config.run.save_every=5', '--config.metrics.outputs=log,jsonl'),
    # Fills the replay without learning, so that nothing has to be compiled.
    *('--config.run.train_ratio=0', '--config.policy.mode=random'),
  ]
  process = start(cloud, *command)
  wait_for(lambda: layout.steps(cloud / 'run/checkpoints'), process)
  for each in running(cloud):
    os.kill(each, signal.SIGKILL)
  (cloud / 'state').write_text('SUSPENDED')

  wait_for(lambda: re.search('Restoring.* step ', log(cloud), re.S), process)
  going = running(cloud)
  process.kill()
  earlier, _ = process.communicate(timeout=20)
  assert earlier.count('requesting pod') == 2

  process = start(cloud, *command)
  assert 'showing that run' in process.stdout.readline()
  assert running(cloud) == going
  stop = start(cloud, 'stop', 'pod', 'us-west4-a')
  assert stop.wait(60) == 0, stop.stdout.read()
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 75, output

  assert output.count('Restoring the checkpoint') == 1
  assert 'on each of 2 hosts' in output
  assert 'stopped, run again to resume' in output
  calls = (cloud / 'calls').read_text().splitlines()
  requests = [x for x in calls if x.split()[3] in ('create', 'delete')]
  assert [x.split()[3] for x in requests] == ['create', 'delete', 'create']
  assert requests[0] == (
    'compute tpus queued-resources create pod --node-id=pod '
    '--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite '
    '--spot --zone=us-west4-a'
  )


def test_an_error_in_the_run_ends_it(cloud):
  process = start(
    cloud,
    *('train', 'pod', 'v6e-8', 'us-east5-b', '--logdir=gs://run'),
    *('--config=configs/gym.py:debug', "--config.task=gym_It's-v0"),
  )
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 1, output
  assert "gym_It's-v0" in output.splitlines()[-1]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'launch/tpu.sh train NAME TYPE ZONE'),
    (['train', 'a', 'v4-8', 'z', '--logdir=runs/a'], 'logdir=gs://BUCKET/RUN'),
  ],
)
def test_bad_arguments_request_nothing(cloud, arguments, message):
  process = start(cloud, *arguments)
  output, _ = process.communicate(timeout=20)
  assert process.returncode == 1
  assert message in output
  assert not (cloud / 'calls').exists()
