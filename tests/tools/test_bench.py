"""Tests of every benchmark at the debug size, with injected clocks."""

import collections
import itertools
import json
import subprocess
import sys

import jax
import pytest

from dreamer_tpu.cli import flags
from dreamer_tpu.tools.bench import __main__ as bench
from dreamer_tpu.tools.bench import device, host, parts, runs

DEBUG = '--config=configs/gym.py:debug'
SECONDS, UNIT = 0.5, 0.01


class Clock:
  """A clock that only `sleep` moves."""

  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now

  def sleep(self, seconds):
    self.now += seconds


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(device, 'clock', clock)
  return clock


@pytest.fixture(scope='module')
def config():
  return flags.parse_config([DEBUG])[0]


@pytest.fixture(scope='module')
def fixed_measure():
  """Runs each benchmark once and reports a fixed time."""

  def measure(run, inputs, repeat):
    for data in itertools.islice(inputs, repeat):
      run(data)
    return SECONDS, UNIT

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(device, 'measure', measure)
    yield


@pytest.fixture(scope='module')
def learner(config, fixed_measure):
  start = device.clock()
  (row,) = device.learner(config, 1)
  return {**row, 'wall_s': device.clock() - start}


def rows(capsys, *args):
  assert bench.main([*args, '--json']) == 0
  lines = capsys.readouterr().out.splitlines()
  return [json.loads(line) for line in lines]


def test_device_parts_need_neither_environments_nor_tensorflow():
  code = (
    'import sys; from dreamer_tpu.tools.bench import __main__, device;'
    "print([x for x in ('gymnasium', 'tensorflow', 'clu', 'dreamer_tpu.envs')"
    ' if x in sys.modules])'
  )
  command = [sys.executable, '-c', code]
  result = subprocess.run(command, capture_output=True, text=True, check=True)
  assert result.stdout == '[]\n'


def test_measure_reports_medians_without_the_warmup(monkeypatch, clock):
  monkeypatch.setattr(
    device, 'reference_matmul', lambda: lambda: clock.sleep(0.25)
  )
  seconds = iter([100, 1, 2, 6])
  assert device.measure(clock.sleep, seconds, 3) == (2, 0.25)


def test_median_leaves_out_the_warmup(clock):
  seconds = iter([100, 90, 1, 2, 6])
  assert host._median(lambda: clock.sleep(next(seconds)), 3, warmup=2) == 2


def test_learner(learner):
  assert learner['batch'] == '8x8'
  assert learner['ms'] == 500
  assert learner['unit_ms'] == 10
  assert learner['units'] == pytest.approx(50)
  assert learner['steps_per_s'] == 128
  # Every weight of the world model is used at B x T steps, forward and back.
  floor = 6 * 8 * 8 * learner['parameters'] / 1e9
  assert 0.5 * floor < learner['matmul_gflops'] < 20 * floor
  assert learner['matmul_gflops'] < learner['gflops']
  assert learner['mfu'] is None  # The peak of a CPU is unknown.
  assert 0.05 < learner['compile_s'] < learner['wall_s']
  state = 12 * learner['parameters'] / 2**30  # Weights and two moments.
  assert state < learner['donated_gib'] <= learner['arguments_gib'] < 10 * state


def test_parts(monkeypatch, config, learner):
  """Operations of the update are attributed to its parts."""
  monkeypatch.setattr(parts, 'rates', lambda: (1e6, 1e3))
  found = parts.parts(config, 1)
  costs = {(row['part'], row['pass']): row for row in found}
  assert {part for part, _ in costs} == {*parts.PARTS, 'other'}
  times = [row['ms'] for row in found]
  assert times == sorted(times, reverse=True)
  for part in parts.PARTS:
    assert sum(row['ms'] for row in found if row['part'] == part) > 1e-4, part
  gflops = sum(row['gflops'] for row in found)
  assert jax.device_count() * gflops == pytest.approx(learner['gflops'])
  assert costs['other', '']['gflops'] < 0.01 * gflops
  for part in ('encoder', 'observe', 'decoder'):
    forward, backward = costs[part, 'forward'], costs[part, 'backward']
    assert forward['gflops'] < backward['gflops']
  # Reads and writes of weights and two moments.
  assert costs['optimizer', '']['gb'] > 24e-9 * learner['parameters']
  row = costs['observe', 'backward']
  assert row['compute'] * row['ms'] == pytest.approx(1e6 * row['gflops'])
  assert row['memory'] * row['ms'] == pytest.approx(1e9 * row['gb'])


def test_rates_are_plausible():
  compute, memory = parts.rates()
  assert 1e8 < compute < 1e15
  assert 1e7 < memory < 1e14


def test_self_time_excludes_nested_operations():
  Event = collections.namedtuple('Event', 'start_ns duration_ns stats')
  events = [
    (0, 10, 'loop'),
    (1, 3, 'a'),
    (5, 4, 'b'),
    (6, 1, 'c'),
    (20, 2, 'd'),
  ]
  line = [Event(a, b, [('hlo_op', name)]) for a, b, name in events]
  line.append(Event(2, 1, [('other', 'thread')]))
  found = dict(parts.self_time(line))
  expected = dict(loop=3, a=3, b=3, c=1, d=2)
  assert found == pytest.approx({k: v / 1e9 for k, v in expected.items()})


@pytest.mark.parametrize(
  ('origin', 'part'),
  [
    ('jit(_train)/jvp(encoder)/dot_general', ('encoder', 'forward')),
    ('jit(f)/transpose(jvp(jvp(decoder)))/mul', ('decoder', 'backward')),
    ('jit(_train)/optimizer/mul', ('optimizer', '')),
    ('jit(_train)/jvp(imagine)/while/body/add', ('imagine', '')),
    ('jit(_train)/jvp(encoders)/add', ('other', '')),
    ('', ('other', '')),
  ],
)
def test_operations_are_classified_by_scope(origin, part):
  assert parts.classify(origin) == part


def test_policy(capsys, fixed_measure):
  result = rows(capsys, 'policy', DEBUG, '--repeat=1')
  assert [row['envs'] for row in result] == [1, 4, 16, 64]
  assert [row['steps_per_s'] for row in result] == [2, 8, 32, 128]
  assert {row['ms'] for row in result} == {500}


@pytest.fixture
def medians(monkeypatch):
  """Replaces medians of the host by 0.5, 0.25 and 0.125 seconds, in order."""
  times = iter([0.5, 0.25, 0.125])

  def median(run, repeat, warmup=1):
    for _ in range(repeat):
      run()
    return next(times)

  monkeypatch.setattr(host, '_median', median)


def test_actor(capsys, medians):
  (row,) = rows(capsys, 'actor', DEBUG, '--repeat=2')
  assert (row['envs'], row['ms'], row['steps_per_s']) == (2, 500, 4)


def test_replay(capsys, medians):
  (row,) = rows(capsys, 'replay', DEBUG, '--repeat=2')
  assert row['batch'] == '8x9'
  assert row['insert_steps_per_s'] == 4
  assert row['sample_ms'] == 250
  assert row['write_back_ms'] == 125
  size = row['bytes_per_step']
  # Latents of the debug size, an observation of four floats, and the rest.
  assert 32 * 4 + 4 + 4 * 4 < size < 250
  assert row['sample_mb_per_s'] == pytest.approx(4e-6 * 8 * 9 * size)


def test_checkpoint(monkeypatch, capsys, learner):
  seconds = dict(save=1, wait=2, restore=5)

  def timed(run, *args):
    run(*args)
    return seconds[run.__name__]

  monkeypatch.setattr(host, 'timed', timed)
  (row,) = rows(capsys, 'checkpoint', DEBUG, '--repeat=1')
  assert (row['blocking_s'], row['save_s'], row['restore_s']) == (1, 3, 5)
  state = 12 * learner['parameters'] / 1e6  # Weights and two moments.
  assert state < row['mb'] < 1.5 * state
  assert row['save_mb_per_s'] == pytest.approx(row['mb'] / 3)


@pytest.mark.slow
def test_startup(capsys):
  cold, warm = rows(capsys, 'startup', DEBUG)
  assert (cold['cache'], warm['cache']) == ('cold', 'warm')
  assert warm['compile_s'] < cold['compile_s'] < cold['first_update_s']


@pytest.mark.slow
def test_end_to_end(capsys):
  (row,) = rows(
    capsys,
    'end_to_end',
    DEBUG,
    '--config.run.steps=300',
    '--config.run.log_every=0.5',
  )
  assert 0 < row['steps'] <= 300
  # The train ratio is 8, a batch is 64 steps.
  ratio = row['updates_per_s'] / row['steps_per_s']
  assert ratio == pytest.approx(8 / 64, rel=0.5)
  assert 0.1 < row['learning'] + row['acting'] <= 1
  assert row['bound'] == (
    'learner' if row['learning'] >= row['acting'] else 'actor'
  )


@pytest.mark.parametrize(
  ('learning', 'acting', 'learner_wait', 'actor_wait', 'bottleneck'),
  [
    (0.7, 0.3, None, None, 'learner'),
    (0.2, 0.8, None, None, 'actor'),
    (0.97, 0.4, 0.02, 0.6, 'learner'),
    (0.97, 0.99, 0.02, None, 'learner'),
    (0.3, 1.0, 0.7, None, 'actor'),
  ],
)
def test_bottleneck(learning, acting, learner_wait, actor_wait, bottleneck):
  shares = dict(
    learning=learning,
    acting=acting,
    learner_wait=learner_wait,
    actor_wait=actor_wait,
  )
  assert runs.bottleneck(shares) == bottleneck


def test_the_steady_state_is_the_longest_interval_but_the_first():
  logs = [{'time': t} for t in (50, 60, 90, 100, 101)]
  assert runs.steady_state_record(logs) is logs[2]
  assert runs.steady_state_record(logs[:1]) is logs[0]


def test_table():
  lines = bench.table([{'a': 1, 'b': 1234.5}, {'a': 2}]).splitlines()
  assert [line.split() for line in lines] == [
    ['a', '1', '2'],
    ['b', '1,234', '-'],
  ]


@pytest.mark.parametrize(
  ('args', 'text'),
  [
    (['learner', DEBUG, '--repeat=0'], '--repeat=0'),
    (['learner', DEBUG, '--config.task=minecraft_x'], "'minecraft_x'"),
  ],
)
def test_errors_are_one_line(capsys, args, text):
  assert bench.main(args) == 1
  err = capsys.readouterr().err
  assert err.startswith('error: ')
  assert err.count('\n') == 1
  assert text in err
