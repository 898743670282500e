"""Several hosts as one run: real processes, and failures that end them."""

import contextlib
import os
import pathlib
import signal
import socket
import time

import pytest

from dreamer_tpu.hosts import heartbeat
from dreamer_tpu.metrics import video
from tests.helpers import network, pods, program
from tests.helpers.disk import Disk
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
    # A save, for which all wait, between the last two rounds would hide that
    # consensus is late.
    '--config.run.save_every=0',
    '--config.run.steps=160',
  )
  first, second = pods.run(tmp_path, 2, 2, *args)
  assert (first.code, second.code) == (0, 0), (first.err, second.err)
  metrics = program.read(tmp_path / 'metrics.jsonl')
  # Consensus comes one round late: each host has made one more step by then.
  assert metrics[-1]['step'] == metrics[-1]['replay/steps'] == 164
  updates = metrics[-1]['update']
  # The first log comes a round after the first update: nothing is logged at
  # the step of a save.
  begin = metrics[0]['step'] - 4
  assert updates == 1 + (metrics[-2]['step'] - begin) // 8
  evaluated = [x for x in metrics if 'eval/episode/score' in x]
  assert evaluated
  assert all(x['eval/episode/count'] == 3 for x in evaluated)
  assert all(x['eval/episode/length'] == 20 for x in evaluated)
  assert 'eval/loss/total' in evaluated[-1]
  # Each host has two environments for training and two for evaluation; all
  # training episodes end together, and host 0 evaluates two of three.
  indices = [
    x['epstats/index/avg'] for x in metrics if 'epstats/index/avg' in x
  ]
  assert set(indices) == {(0 + 1 + 4 + 5) / 4}
  assert evaluated[0]['eval/epstats/index/avg'] == pytest.approx(
    (2 + 3 + 6) / 3
  )
  folder = tmp_path / 'videos' / 'eval' / 'episode' / 'render'
  shown = video.read_gif(folder / '0.gif')
  assert shown[:, 0, 0, 0].tolist() == list(range(0, 210, 10))
  scores = program.read(tmp_path / 'scores.jsonl')
  lengths = [x['episode/length'] for x in scores if x['mode'] == 'train']
  # Four environments in all make 41 steps each; a reset takes one of them.
  assert lengths == [20] * 8
  for folder in ('replay', 'replay_eval'):
    shards = {path.name for path in (tmp_path / folder).iterdir()}
    assert shards == {'0000', '0001'}

  ended = program.run(
    tmp_path,
    *GAME,
    '--config.run.steps=200',
    '--config.env.check=True',
    JAX_PROCESS_ID='0',
  )
  assert ended.code == 0, ended.err
  assert "Gymnasium's checker has no complaints about" in ended.out
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
    '--config.env.timeout=2',
    '--config.env.restarts=1',
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
    'hang': 'environment 0: no answer for 2 s',
  }
  assert reason[fault] in ended[0].err[-1]
  print(f'{fault}: all ended after {seconds:.1f} s', ended[0].err[-1])
  assert seconds < 60
  if fault != 'kill':  # All hosts have saved.
    program.check_saved_as_logged(logdir)
    return
  # The run resumes from the last commit.
  step = program.steps(logdir)[-1]
  last = f'--config.run.steps={step + 100}'
  again = pods.run(logdir, 3, 1, *THREE, last)
  assert [x.code for x in again] == [0] * 3, again
  assert f'checkpoint of step {step:,}' in again[0].out


@pytest.mark.parametrize(
  ('error', 'expected'),
  [
    (ValueError('UNKNOWN: Gloo AllGather failed: Connection reset'), True),
    (ValueError('DEADLINE_EXCEEDED: Barrier timed out'), True),
    (ValueError('could not broadcast input array: shapes differ'), False),
    (KeyError('UNKNOWN: '), False),
  ],
)
def test_failed_collectives_are_of_the_runtime(error, expected):
  assert heartbeat.is_of_runtime(error) == expected


def test_an_evaluation_that_fails_on_one_host_saves_on_all(tmp_path):
  fault = tmp_path / 'fault'
  fault.write_text('evaluation')
  logdir = tmp_path / 'logdir'
  ended = pods.run(
    logdir,
    2,
    1,
    *GAME,
    FOREVER,
    '--config.script=train_eval',
    '--config.run.report_every=1',
    '--config.run.save_every=0',
    '--config.env.restarts=0',
    POD_FAULT=str(fault),
  )
  assert [x.code for x in ended] == [1, 1], ended
  assert all('Host 1 of 2' in x.err[-1] for x in ended)
  assert all('the game is over' in x.err[-1] for x in ended)
  assert program.check_saved_as_logged(logdir)['update'] > 0


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
  program.check_saved_as_logged(tmp_path)


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
  # Each host acts ahead by two steps of its environments and an update, and as
  # much again while the others do not know of its last steps yet.
  assert made == pytest.approx(wanted, abs=6)


def test_nobody_comes(tmp_path):
  address = dict(JAX_COORDINATOR_ADDRESS='localhost:1', JAX_NUM_PROCESSES='2')
  short = '--config.distributed.timeout=3'
  ended = program.run(tmp_path, *GAME, short, **address, JAX_PROCESS_ID='1')
  assert ended.code == 1
  assert 'could not join process 0 at localhost, port 2' in ended.err[-1]
  assert not (tmp_path / 'config.json').exists()
  ended = program.run(tmp_path, *GAME, short, **address)
  assert ended.code == 1
  assert 'distributed.process_id is missing' in ended.err[-1]


@contextlib.contextmanager
def waiting(logdir, *args):
  """Starts processes 0 and 1 of a run that waits for its process 2.

  Yields:
    Function that starts a process of the same address, and the two processes.
  """
  port = pods.free_port()
  address = f'localhost:{port}'

  def process(count, index):
    return program.Program(
      logdir,
      *THREE,
      *args,
      JAX_PLATFORMS='cpu',
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES=str(count),
      JAX_PROCESS_ID=str(index),
    )

  both = [process(3, 0), process(3, 1)]
  try:
    both[1].wait_for(lambda: connected(both[1].process.pid))
    # It answers in the order of connections, so that it knows process 1 now.
    assert 'refused' in greet(port + 1)
    yield process, both
  finally:
    for each in both:
      each.process.kill()


def greet(port):
  """Returns what process 0 answers to a process of a run of 4."""
  with (
    socket.create_connection(('localhost', port), 60) as connection,
    connection.makefile('rw') as lines,
  ):
    lines.write('{"kind": "hello", "host": 3, "hosts": 4}\n')
    lines.flush()
    return lines.readline()


def connected(pid):
  """Returns whether a process has a TCP connection."""
  sockets = set()
  for file in pathlib.Path(f'/proc/{pid}/fd').iterdir():
    with contextlib.suppress(FileNotFoundError):  # Closed meanwhile.
      sockets.add(os.readlink(file))
  lines = [
    line.split()
    for name in ('tcp', 'tcp6')
    for line in pathlib.Path(f'/proc/{pid}/net/{name}').read_text().splitlines()
  ]
  return any(x[3] == '01' and f'socket:[{x[9]}]' in sockets for x in lines)


def test_ports_of_another_run_and_a_signal_before_all_have_come(tmp_path):
  with waiting(tmp_path) as (process, both):
    others = [process(3, 0), process(3, 1), process(4, 3)]
    ended = end(others)
    assert [x.code for x in ended] == [1] * 3
    # They do not wait for a timeout, of which the shortest is 300 s.
    assert max(x.seconds for x in ended) < 150
    for each in ended:
      assert len(each.err) == 1
      assert 'is in use by another run' in each.err[0]
      assert 'distributed.coordinator_address' in each.err[0]
    assert 'process 1 already' in ended[1].err[0]
    assert 'of 3 processes instead of 4' in ended[2].err[0]
    both[1].process.terminate()
    ended = end(both)
  assert [x.code for x in ended] == [75, 75], ended
  assert 'Host 1 of 3 got SIGTERM' in ended[0].out
  assert 'SIGTERM: stopping at once' in ended[1].out
  assert [x.err for x in ended] == [[], []]


@pytest.mark.parametrize('victim', [0, 1])
def test_a_host_that_is_stopped_and_continued(tmp_path, victim):
  with waiting(tmp_path, '--config.distributed.silence=3') as (_, both):
    both[victim].process.send_signal(signal.SIGSTOP)
    ended = both[1 - victim].end()
    both[victim].process.send_signal(signal.SIGCONT)
    begin = time.monotonic()
    late = both[victim].end()
  assert time.monotonic() - begin < 30
  assert (ended.code, late.code) == (1, 1)
  for each in (ended, late):
    assert f'Host {victim} of 3' in each.err[-1]
    assert 'no heartbeat for 3 s' in each.err[-1]


@pytest.mark.skipif(os.geteuid() != 0, reason='needs root')
def test_hosts_that_stop_on_a_full_disk(tmp_path):
  with contextlib.ExitStack() as stack:
    disk = Disk(tmp_path / 'disk', '64m')
    stack.callback(disk.release)
    logdir = disk.path / 'logdir'
    # No save must be on its way: hosts wait long for the part of one that
    # finds the disk full while it writes.
    with pods.start(
      logdir, 2, 1, *GAME, FOREVER, '--config.run.save_every=0'
    ) as programs:
      programs[0].wait_for(lambda: trains(logdir)() and saved(logdir))
      steps = program.steps(logdir)
      disk.fill(free=400_000)  # Enough for the part of one host.
      programs[0].process.send_signal(signal.SIGTERM)
      begin = time.monotonic()
      ended = end(programs)
    assert time.monotonic() - begin < 60
    assert program.steps(logdir) == steps
  for each in ended:
    assert each.code == 1
    assert 'Saving the last checkpoint' in each.err[-1], each.err
    assert 'No space left on device' in each.err[-1]


def saved(logdir):
  """Returns whether the save before the first update is done."""
  names = [path.name for path in (logdir / 'checkpoints').iterdir()]
  return program.steps(logdir)[-1:] > [0] and not any(
    'tmp' in name for name in names
  )


def test_hosts_with_other_logdirs(tmp_path):
  one, two = tmp_path / 'one', tmp_path / 'two'
  with pods.start(lambda host: (one, two)[host], 2, 1, *GAME) as programs:
    ended = end(programs)
  check_refused(ended, f'--logdir={two} on host 1 is not the folder of host 0')
  assert str(one) in ended[0].err[-1]
  assert not two.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason='needs root')
def test_hosts_with_other_disks(tmp_path):
  mount = f'mount -t tmpfs none {tmp_path} && exec "$0" "$@"'
  own = lambda host: ['unshare', '--mount', 'sh', '-c', mount] if host else []
  ended = pods.run(tmp_path / 'run', 2, 1, *GAME, prefix=own)
  check_refused(ended, f'--logdir={tmp_path / "run"} on host 1 is not')


def check_refused(ended, text):
  """Checks that both hosts ended at the start, with one line."""
  for each in ended:
    assert each.code == 1
    assert text in each.err[-1]
    assert 'that all hosts share' in each.err[-1]
    assert len(each.err) == 1
    assert 'Starting' not in each.out


@pytest.mark.skipif(not network.AVAILABLE, reason='needs root and iproute2')
def test_a_cut_link(tmp_path):
  with (
    network.Network(3) as net,
    pods.start(
      tmp_path,
      3,
      1,
      *THREE,
      FOREVER,
      '--config.run.save_every=1',
      prefix=net.prefix,
      ADDRESS=net.address(0),
    ) as programs,
  ):
    programs[0].wait_for(lambda: trains(tmp_path)() and program.steps(tmp_path))
    begin = time.monotonic()
    net.connect(1, up=False)
    ended = end(programs)
  seconds = time.monotonic() - begin
  print(f'cut link: all ended after {seconds:.1f} s', ended[0].err[-1])
  assert seconds < 60
  assert [x.code for x in ended] == [1] * 3, ended
  for each in (ended[0], ended[2]):
    assert 'Host 1 of 3: no heartbeat' in each.err[-1], each.err
  assert 'Host 0 of 3: no heartbeat' in ended[1].err[-1]
