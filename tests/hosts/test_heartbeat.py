"""Several hosts as one run: real processes, and failures that end them."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from tests.helpers import pods, program
from tests.helpers.pods import GAME

FOREVER = '--config.run.steps=1e7'
THREE = (*GAME, '--config.batch_size=9')  # Divides over three hosts.


def end(programs):
  return [each.end() for each in programs]


def trains(logdir):
  path = logdir / 'metrics.jsonl'
  return lambda: path.exists() and 'train/loss/total' in path.read_text()


def test_two_hosts_train_and_one_resumes(tmp_path):
  args = (
    *GAME,
    '--config.script=train_eval',
    '--config.mesh.model=2',
    '--config.run.report_every=-1',
    '--config.run.log_every=-1',
    '--config.run.steps=160',
  )
  first, second = pods.run(tmp_path, 2, 2, *args)
  assert (first.code, second.code) == (0, 0), (first.err, second.err)
  metrics = program.read(tmp_path / 'metrics.jsonl')
  # Consensus comes one round late: each host has made one more step by then.
  assert metrics[-1]['step'] == metrics[-1]['replay/steps'] == 164
  updates = metrics[-1]['update']
  assert updates == 1 + (metrics[-2]['step'] - metrics[0]['step']) // 8
  evaluated = [x for x in metrics if 'eval/episode/score' in x]
  assert evaluated
  assert all(x['eval/episode/count'] == 3 for x in evaluated)
  assert all(x['eval/episode/length'] == 20 for x in evaluated)
  assert 'eval/loss/total' in evaluated[-1]
  scores = program.read(tmp_path / 'scores.jsonl')
  lengths = [x['episode/length'] for x in scores if x['mode'] == 'train']
  # Four environments in all make 41 steps each; a reset takes one of them.
  assert lengths == [20] * 8
  for folder in ('replay', 'replay_eval'):
    shards = {path.name for path in (tmp_path / folder).iterdir()}
    assert shards == {'0000', '0001'}

  ended = program.run(
    tmp_path, *GAME, '--config.run.steps=200', JAX_PROCESS_ID='0'
  )
  assert ended.code == 0, ended.err
  last = program.read(tmp_path / 'metrics.jsonl')[-1]
  assert last['step'] == last['replay/steps'] == 200
  assert last['update'] > updates


@pytest.mark.parametrize('fault', ['kill', 'raise', 'hang'])
def test_a_host_that_fails_ends_all(tmp_path, fault):
  signal_file = tmp_path / 'fault'
  logdir = tmp_path / 'logdir'
  with pods.start(
    logdir,
    3,
    1,
    *THREE,
    FOREVER,
    '--config.script=parallel',
    '--config.run.save_every=1',
    '--config.distributed.env_timeout=5',
    POD_FAULT=str(signal_file),
  ) as programs:
    programs[0].wait_for(lambda: trains(logdir)() and program.steps(logdir))
    begin = time.monotonic()
    if fault == 'kill':
      os.killpg(programs[1].process.pid, signal.SIGKILL)
    else:
      signal_file.write_text(fault)
    ended = end(programs)
  seconds = time.monotonic() - begin
  codes = [x.code for x in ended]
  assert codes == [1, -9 if fault == 'kill' else 1, 1]
  for each in (ended[0], ended[2]):
    assert 'Host 1 of 3' in each.err[-1], each.err
  reason = {
    'kill': 'its process ended',
    'raise': 'the game is over',
    'hang': 'a step of the environments took more than 5 s',
  }
  assert reason[fault] in ended[0].err[-1]
  print(f'{fault}: all ended after {seconds:.1f} s', ended[0].err[-1])
  assert seconds < 60
  # The run resumes from the last commit.
  step = program.steps(logdir)[-1]
  last = f'--config.run.steps={step + 100}'
  again = pods.run(logdir, 3, 1, *THREE, last)
  assert [x.code for x in again] == [0] * 3, again
  assert f'checkpoint of step {step:,}' in again[0].out


def test_a_slow_end_is_no_failure(tmp_path):
  ended = pods.run(
    tmp_path,
    2,
    1,
    *GAME,
    '--config.run.steps=20',
    '--config.distributed.silence=8',
    POD_VICTIM='0',
    POD_CLOSE='8',  # for each of two environments
  )
  assert [each.code for each in ended] == [0, 0], ended


def test_one_signal_stops_all(tmp_path):
  with pods.start(
    tmp_path,
    2,
    1,
    *GAME,
    FOREVER,
  ) as programs:
    programs[0].wait_for(trains(tmp_path))
    programs[1].process.terminate()
    ended = end(programs)
  assert [x.code for x in ended] == [75, 75], ended
  assert program.steps(tmp_path)[-1] == program.state(tmp_path)['step']


def test_a_slow_host_with_a_wrong_clock(tmp_path):
  ended = pods.run(
    tmp_path,
    2,
    1,
    *GAME,
    '--config.script=parallel',
    '--config.run.steps=1500',
    '--config.run.save_every=2',
    POD_SLOW='0.02',
    POD_CLOCK='3600',
  )
  assert [x.code for x in ended] == [0, 0], ended
  metrics = program.read(tmp_path / 'metrics.jsonl')
  first, last = metrics[0], program.state(tmp_path)
  # A host with a filled replay waits for the other.
  assert first['step'] < 200
  made = last['update'] - first['update']
  wanted = (last['step'] - first['step']) * 8 / 64
  assert made + last['owed'] == pytest.approx(wanted, abs=2)
  assert made == pytest.approx(wanted, rel=0.02, abs=3)


def test_nobody_comes(tmp_path):
  address = dict(JAX_COORDINATOR_ADDRESS='localhost:1', JAX_NUM_PROCESSES='2')
  short = '--config.distributed.timeout=3'
  ended = program.run(tmp_path, *GAME, short, **address, JAX_PROCESS_ID='1')
  assert ended.code == 1
  assert 'could not join the others at localhost:1 within 3' in ended.err[-1]
  assert not (tmp_path / 'config.json').exists()
  ended = program.run(tmp_path, *GAME, short, **address)
  assert ended.code == 1
  assert 'distributed.process_id is missing' in ended.err[-1]


def in_namespace(name, address):
  """Returns a command that runs another one as the host of an address."""
  script = f'hostname {address} && exec "$0" "$@"'
  return ['ip', 'netns', 'exec', name, 'unshare', '--uts', 'sh', '-c', script]


@pytest.fixture
def network():
  """Three network namespaces at a hub, which is one, too."""
  if os.geteuid() or not shutil.which('ip'):
    pytest.skip('needs root and iproute2')
  hub, *names = (f'pod{os.getpid()}-{i}' for i in range(4))
  ip = lambda *args: subprocess.run(['ip', *args], check=True)
  for name in (hub, *names):
    ip('netns', 'add', name)
    ip('-n', name, 'link', 'set', 'lo', 'up')
  ip('-n', hub, 'link', 'add', 'bridge', 'type', 'bridge')
  ip('-n', hub, 'link', 'set', 'bridge', 'up')
  for i, name in enumerate(names):
    port = f'port{i}'
    ip('-n', hub, 'link', 'add', port, 'type', 'veth',
       'peer', 'name', 'net', 'netns', name)  # fmt: skip
    ip('-n', hub, 'link', 'set', port, 'master', 'bridge', 'up')
    ip('-n', name, 'addr', 'add', f'10.77.0.{i + 1}/24', 'dev', 'net')
    ip('-n', name, 'link', 'set', 'net', 'up')
  yield names
  for name in (hub, *names):
    ip('netns', 'del', name)


def test_a_cut_link(tmp_path, network):
  cut = ['ip', '-n', network[1], 'link', 'set', 'net', 'down']
  with pods.start(
    tmp_path,
    3,
    1,
    *THREE,
    FOREVER,
    '--config.run.save_every=1',
    prefix=lambda i: in_namespace(network[i], f'10.77.0.{i + 1}'),
    ADDRESS='10.77.0.1',
  ) as programs:
    programs[0].wait_for(lambda: trains(tmp_path)() and program.steps(tmp_path))
    begin = time.monotonic()
    subprocess.run(cut, check=True)
    ended = end(programs)
  seconds = time.monotonic() - begin
  print(f'cut link: all ended after {seconds:.1f} s', ended[0].err[-1])
  assert seconds < 60
  assert [x.code for x in ended] == [1] * 3, ended
  for each in (ended[0], ended[2]):
    assert 'Host 1 of 3: no heartbeat' in each.err[-1], each.err
  assert 'Host 0 of 3: no heartbeat' in ended[1].err[-1]
