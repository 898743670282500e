"""launch/gke.sh and launch/gce.sh in the stand-in cloud."""

import os
import subprocess

import pytest
import yaml

PROGRAM = """
trap 'exit 75' TERM
echo "machine $JAX_PROCESS_ID trains with ${KEY:-no key}: $*"
until [ -e "$CLOUD/end" ]; do sleep 0.05; done
"""
POD = ('pod', 'v6e:2x4', 'us-east5-b')
PLACE = ('pod', 'us-east5-b')


def test_machines_train_at_each_boot_until_they_are_stopped(cloud):
  env = {'script': 'gce.sh', 'PROJECT': 'mine'}
  cloud.run_program(PROGRAM)
  cloud.write(secrets='s3cret')
  logs = [f'pod/pod-{i}' for i in range(2)]
  train = ('train', *POD, '--logdir=gs://bucket/run', "--config.task=It's")
  cloud.end(*train, SECRETS='KEY', **env)
  status = cloud.start('status', *PLACE, **env)
  assert status.communicate(timeout=60)[0] == 'pod-0\npod-1\n'
  follow = cloud.start('logs', *PLACE, 'pod-1', **env)
  line = 'machine 1 trains with s3cret: main.py --logdir=gs://bucket/run'
  # They are there once the machines have installed.
  cloud.wait(lambda: len(cloud.pids()) == 2, follow)
  cloud.wait(lambda: all(map(cloud.log, logs)), follow)
  assert f"{line} --config.task=It's\n" in cloud.log(logs[1])
  os.killpg(follow.pid, 9)

  assert 'already exists' in cloud.end(*train, code=1, **env)
  cloud.end('delete', *PLACE, **env)
  assert not cloud.pids()
  assert not [*cloud.folder.glob('pod'), *cloud.folder.glob('*.pod')]

  cloud.end(*train, **env)
  follow = cloud.start('logs', *PLACE, **env)
  cloud.wait(lambda: len(cloud.pids()) == 2, follow)
  cloud.wait(lambda: all(map(cloud.log, logs)), follow)
  cloud.end('stop', *PLACE, **env)
  codes = [cloud.folder / log / 'dreamer_tpu/.code' for log in logs]
  cloud.wait(lambda: all(path.exists() for path in codes), follow)
  assert {path.read_text() for path in codes} == {'75\n'}


def test_a_stop_that_does_not_reach_a_machine_fails(cloud):
  env = {'script': 'gce.sh', 'PROJECT': 'mine'}
  for i in range(2):
    (cloud.folder / f'pod/pod-{i}').mkdir(parents=True)
  (cloud.folder / 'bin/sudo').write_text('#!/bin/sh\n[ "$JAX_PROCESS_ID" = 1 ]')
  cloud.end('stop', *PLACE, code=1, **env)
  assert len(cloud.calls('ssh')) == 2


def test_a_stop_of_no_group_fails(cloud):
  output = cloud.end('stop', *PLACE, code=1, script='gce.sh', PROJECT='mine')
  assert "The resource 'pod' was not found" in output
  assert not cloud.calls('ssh')


def test_dry_runs_of_compute_engine_call_nothing(cloud):
  env = {'script': 'gce.sh', 'PROJECT': 'mine'}
  for command in ('status', 'logs', 'stop', 'delete'):
    output = cloud.end(command, *PLACE, '--dry_run', **env)
    assert all(x.startswith('gcloud ') for x in output.splitlines())
  assert not cloud.calls()


def test_job_set_is_accepted_shown_and_deleted(cloud):
  env = {'script': 'gke.sh', 'SPOT': '1', 'NODE_COUNT': '2'}
  train = ('train', 'pod', 'v6e:2x4', 'image', '--logdir=gs://bucket/run')
  assert 'created' in cloud.end(*train, **env)
  status = cloud.end('status', 'pod', **env).splitlines()
  assert status[1:] == ['pod-slice-0-0', 'pod-slice-0-1']
  assert cloud.end('logs', 'pod', '1', **env) == 'pod-slice-0-1\n'
  before = cloud.calls()
  for command in ('status', 'logs', 'delete'):
    assert 'kubectl' in cloud.end(command, 'pod', '--dry_run', **env)
  assert cloud.calls() == before
  cloud.end('delete', 'pod', **env)
  assert 'not found' in cloud.end('status', 'pod', code=1, **env)


@pytest.mark.parametrize(
  ('part', 'other', 'message'),
  [
    ('maxRestarts', 'maxRestart', 'unknown field "JobSet.spec.failurePolicy'),
    ('name: preempted', 'onJobFailureReasons: []', 'rules[0].name: Required'),
    ('Never', 'Always', 'restartPolicy: Unsupported value: "Always"'),
    ('backoffLimit: 0', 'backoffLimit: none', 'backoffLimit: Invalid value'),
  ],
)
def test_the_stand_in_refuses_another_job_set(cloud, part, other, message):
  env = {**os.environ, 'CLOUD': str(cloud.folder)}
  train = ('train', 'pod', 'v6e:2x4', 'image', '--logdir=gs://b/r')
  text = cloud.end(*train, '--dry_run', script='gke.sh')
  done = subprocess.run(
    [cloud.folder / 'bin/kubectl', 'apply', '-f', '-'],
    input=text.replace(part, other),
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert part in text
  assert yaml.safe_load(text)
  assert done.returncode == 1
  assert message in done.stderr
