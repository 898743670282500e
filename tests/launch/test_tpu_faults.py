"""launch/tpu.sh when the cloud misbehaves; a small script plays main.py."""

import os
import pathlib
import re
import signal
import subprocess

import pytest

TRAIN = ('train', 'pod', 'v6e-16', 'us-east5-b', '--logdir=gs://bucket/run')
# Ends with the code in the file `end` once there is one, and at SIGUSR1 as when
# another host was lost.
PROGRAM = """
key=${WANDB_API_KEY:+a}
trap 'exit 75' TERM
trap 'exit 1' USR1
echo "worker $JAX_PROCESS_ID trains with ${key:-no} key: $*"
until [ -e "$CLOUD/end" ]; do sleep 0.05; done
exit "$(cat "$CLOUD/end")"
"""


@pytest.fixture(autouse=True)
def program(cloud):
  cloud.run_program(PROGRAM)


def requests(cloud):
  """Returns the changes of requests, in order."""
  calls = [x.split()[4] for x in cloud.calls('queued-resources')]
  return [x for x in calls if x != 'describe']


def train_until(cloud, condition, **env):
  process = cloud.start(*TRAIN, **env)
  cloud.wait(condition, process)
  return process


def finish(cloud, process, code=0):
  cloud.write(end=code)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == code, output
  return output


def test_a_failed_request_is_told_and_tried_again(cloud):
  reason = 'There is no more capacity in the zone "us-east5-b"'
  cloud.write(outcomes=f'FAILED\t{reason}\nFAILED\t{reason}', end=0)
  output = cloud.end(*TRAIN)
  assert output.count(f'the request failed: {reason}; trying again') == 2
  assert requests(cloud) == [*['create', 'delete'] * 2, 'create']


def test_failing_requests_have_growing_pauses_and_an_end(cloud):
  cloud.write(outcomes='FAILED\tQuota exceeded\n' * 9)
  (cloud.folder / 'bin/sleep').symlink_to('/bin/true')
  output = cloud.end(*TRAIN, POLL='20', code=1)
  pauses = re.findall(r'trying again in (\d+) s', output)
  assert pauses == ['20', '40', '80', '160', '320', '600', '600']
  last = output.splitlines()[-1]
  assert (
    last == 'tpu: the request failed: Quota exceeded; gave up after 8 tries'
  )
  assert requests(cloud) == ['create', 'delete'] * 8


def test_a_refused_request_ends_at_once_if_it_always_will_be(cloud):
  cloud.write(refuse='INVALID_ARGUMENT: no accelerator type v6e-17')
  assert 'no accelerator type v6e-17' in cloud.end(*TRAIN, code=1)
  assert requests(cloud) == ['create']

  cloud.write(refuse='RESOURCE_EXHAUSTED: too many requests a minute')
  output = cloud.end(*TRAIN, TRIES='3', code=1)
  assert output.count('too many requests a minute; trying again') == 2


def test_a_failed_describe_does_not_mean_that_there_is_no_request(cloud):
  process = train_until(cloud, cloud.log)
  process.kill()
  cloud.write(stammer=3)
  process = cloud.start(*TRAIN)
  cloud.wait(lambda: len(cloud.calls('ssh')) > 5, process)
  output = finish(cloud, process)
  assert output.count('UNAVAILABLE: The service is currently') == 3
  assert 'already training' in output
  assert requests(cloud) == ['create']

  cloud.write(stammer=99)
  assert 'cannot ask for the state' in cloud.end(*TRAIN, TRIES='3', code=1)
  assert requests(cloud) == ['create']


@pytest.mark.parametrize('worker', ['0', '1'])
def test_a_rebooted_worker_is_started_again(cloud, worker):
  process = train_until(cloud, lambda: len(cloud.pids()) == 2)
  cloud.wait(lambda: cloud.log('pod/0') and cloud.log('pod/1'), process)
  before = cloud.pids()
  cloud.reboot(worker)
  if worker == '1':  # The heartbeat ends the other host.
    for pid in cloud.pids('0'):
      os.kill(pid, signal.SIGUSR1)
  cloud.wait(lambda: len({*cloud.pids()} - {*before}) == 2, process)
  assert 'was lost' in finish(cloud, process)
  assert requests(cloud) == ['create']


@pytest.mark.parametrize('state', ['PREEMPTED', 'TERMINATED'])
def test_an_active_request_with_a_dead_node_is_replaced(cloud, state):
  process = train_until(cloud, cloud.log)
  process.kill()
  cloud.write(node=f'{state}\t')
  process = cloud.start(*TRAIN)
  output = finish(cloud, process)
  assert f'pod is DEAD (node pod is {state}); deleted it' in output
  assert requests(cloud) == ['create', 'delete', 'create']


@pytest.mark.parametrize('state', ['REPAIRING\t', 'READY\tUNHEALTHY_TPU'])
def test_a_node_may_be_repaired_but_not_forever(cloud, state):
  process = train_until(cloud, cloud.log)
  process.kill()
  cloud.write(node=state)
  process = cloud.start(*TRAIN, REPAIR='99999')
  asked = len(cloud.calls('tpu-vm', 'describe'))
  cloud.wait(lambda: len(cloud.calls('describe')) > asked + 5, process)
  cloud.write(node='READY\tHEALTHY')
  cloud.wait(lambda: 'worker.sh log' in cloud.calls()[-1], process)
  process.kill()
  assert 'already training' in process.communicate()[0]
  assert requests(cloud) == ['create']

  cloud.write(node=state)
  process = cloud.start(*TRAIN, REPAIR='4')
  output = finish(cloud, process)
  assert re.search(r'pod is DEAD \(node pod is \w+\); deleted it', output)
  assert requests(cloud) == ['create', 'delete', 'create']


@pytest.mark.parametrize(('misses', 'tries'), [(3, 1), (4, 2)])
def test_a_worker_is_lost_when_connections_fail(cloud, misses, tries):
  process = train_until(cloud, cloud.log, MISSES='4')
  cloud.write(deaf=misses)
  cloud.wait(lambda: (cloud.folder / 'deaf').read_text() == '0\n', process)
  cloud.wait(lambda: len(cloud.calls('ssh', 'state')) == tries, process)
  cloud.wait(lambda: 'worker.sh log' in cloud.calls()[-1], process)
  output = finish(cloud, process)
  lost = 'worker 0 of pod was lost, does not answer: Connection timed out'
  assert output.count(lost) == output.count('already training') == tries - 1


def test_a_slice_that_somebody_deleted_is_not_requested_again(cloud):
  process = train_until(cloud, lambda: len(cloud.pids()) == 2)
  cloud.end('delete', 'pod', 'us-east5-b')
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 1
  assert output.endswith('pod was deleted\n')
  assert requests(cloud) == ['create', 'delete']


def test_without_external_addresses(cloud):
  cloud.write(internal='', end=0)
  output = cloud.end(*TRAIN, TRIES='2', code=1)
  assert 'SSH_FLAGS=--internal-ip or --tunnel-through-iap' in output
  assert 'does not have an external IP address' in output
  for flag in ('--internal-ip', '--tunnel-through-iap'):
    cloud.end(*TRAIN, SSH_FLAGS=flag)
    assert cloud.calls('scp')[-1].endswith(f'{flag} --zone=us-east5-b')


def test_variables_reach_main_and_no_command_line(cloud):
  key = "s3cret's $key"
  cloud.run_program(f'echo "$WANDB_API_KEY" >"$CLOUD/key"\n{PROGRAM}')
  process = train_until(
    cloud,
    lambda: all('a key' in cloud.log(f'pod/{i}') for i in range(2)),
    WORKER_ENV='WANDB_API_KEY',
    WANDB_API_KEY=key,
  )
  done = subprocess.run(
    'cat /proc/[0-9]*/cmdline', shell=True, capture_output=True, check=False
  )
  assert b's3cret' not in done.stdout
  assert 's3cret' not in finish(cloud, process)
  assert (cloud.folder / 'key').read_text() == f'{key}\n'
  assert 's3cret' not in '\n'.join(cloud.calls())
  for path in cloud.folder.glob('pod/*/dreamer_tpu/.env'):
    assert path.stat().st_mode & 0o077 == 0
  # No archive with the key is left here or in the home of a worker.
  assert not [*cloud.folder.glob('tmp*'), *cloud.folder.glob('pod/*/*.tgz')]


def test_a_run_has_not_ended_before_its_code_is_noted(cloud):
  state = lambda: cloud.end(
    'state', script='worker.sh', DREAMER_FOLDER=str(cloud.folder)
  )
  assert state() == 'none\n'
  boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  ended = subprocess.Popen(['true'])
  ended.wait()
  (cloud.folder / '.pid').write_text(f'{boot} {ended.pid} {os.getpid()}\n')
  assert state() == 'running\n'
  (cloud.folder / '.code').write_text('3\n')
  assert state() == 'ended 3\n'
  (cloud.folder / '.code').unlink()
  (cloud.folder / '.pid').write_text(f'{boot} {ended.pid} {ended.pid}\n')
  assert state() == 'lost\n'


def test_several_slices(cloud):
  process = train_until(cloud, lambda: len(cloud.pids()) == 4, NODE_COUNT='2')
  finish(cloud, process)
  assert '--node-count=2 --node-prefix=pod' in cloud.calls('create')[0]


def test_status_logs_and_interruption(cloud):
  process = train_until(cloud, lambda: len(cloud.pids()) == 2)
  cloud.wait(lambda: cloud.log('pod/1'), process)
  place = ('pod', 'us-east5-b')
  status = cloud.end('status', *place)
  assert status.startswith('pod: ACTIVE\n')
  assert ': running: worker 1 trains' in status
  os.killpg(process.pid, signal.SIGINT)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 130
  assert 'launch/tpu.sh delete pod us-east5-b' in output
  assert len(cloud.pids()) == 2

  logs = cloud.start('logs', *place, '1')
  cloud.write(end=0)
  assert 'worker 1 trains' in logs.communicate(timeout=60)[0]
  assert ': ended 0: ' in cloud.end('status', *place)
  cloud.end('delete', *place)
  assert cloud.end('status', *place) == 'pod: NONE\n'


def test_a_dry_run_calls_nothing(cloud):
  output = cloud.end('--dry_run', *TRAIN, '--config.task=a b')
  commands = [x for x in output.splitlines() if x.startswith('gcloud ')]
  kinds = [x.split()[5] for x in commands]
  assert kinds == ['create', 'scp', 'ssh', 'ssh', 'ssh']
  assert 'task=a' in commands[3]
  assert 'delete' in cloud.end('delete', 'pod', 'us-east5-b', '--dry_run')
  assert not cloud.calls()


def test_a_submitted_slice_resumes_by_itself(cloud):
  cloud.write(secrets="s3cret's")
  cloud.end('submit', *TRAIN[1:], "--config.task=It's a task", SECRETS='KEY')
  assert 'startup-script=launch/worker.sh' in cloud.calls('create')[0]
  cloud.run_program(f'echo "$KEY, $*" >>"$CLOUD/started"\n{PROGRAM}')
  started = cloud.folder / 'started'
  line = (
    "s3cret's, main.py --logdir=gs://bucket/run --config.task=It's a task\n"
  )
  boot = {
    'script': 'worker.sh',
    'DREAMER_FOLDER': str(cloud.folder / 'pod/0/dreamer_tpu'),
  }
  process = cloud.start(**boot)
  cloud.wait(lambda: started.exists() and started.read_text() == line, process)
  os.killpg(process.pid, signal.SIGKILL)

  process = cloud.start(**boot)
  cloud.wait(lambda: started.read_text() == 2 * line, process)
  cloud.wait(cloud.pids, process)
  for pid in cloud.pids():  # The others have ended this host.
    os.kill(pid, signal.SIGKILL)
  cloud.wait(lambda: started.read_text() == 3 * line, process)
  finish(cloud, process)


def test_a_submitted_run_that_always_fails_at_once_has_an_end(cloud):
  cloud.end('submit', *TRAIN[1:])
  cloud.run_program('echo >>"$CLOUD/started"\nexit 3')
  folder = cloud.folder / 'pod/0/dreamer_tpu'
  cloud.end(script='worker.sh', code=3, DREAMER_FOLDER=str(folder))
  assert (cloud.folder / 'started').read_text() == '\n' * 10
