"""Every part is measured, at sizes of no meaning."""

import collections
import json
import subprocess
import sys

import jax
import pytest

from dreamer_tpu.tools.bench import __main__ as bench
from dreamer_tpu.tools.bench import parts, runs

DEBUG = '--config=configs/gym.py:debug'


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


def test_learner(capsys):
  (row,) = rows(capsys, 'learner', DEBUG, '--repeat=1')
  assert row['batch'] == '8x8'
  assert row['units'] == pytest.approx(row['ms'] / row['unit_ms'])
  assert row['steps_per_s'] == pytest.approx(64e3 / row['ms'])
  assert row['matmul_gflops'] < row['gflops']
  assert row['mfu'] is None  # nobody says what a CPU could do
  assert row['compile_s'] > 0
  assert row['donated_gib'] <= row['arguments_gib'] < 1


def test_parts(capsys):
  """Operations of the update find their way into its parts."""
  found = rows(capsys, 'parts', DEBUG, '--repeat=1')
  parts = {(row['part'], row['pass']): row for row in found}
  named = {part for part, _ in parts}
  assert named == {*parts.PARTS, 'other'}
  assert sum(row['share'] for row in found) == pytest.approx(1)
  assert parts['other', '']['gflops'] < 0.01 * sum(x['gflops'] for x in found)
  (whole,) = rows(capsys, 'learner', DEBUG, '--repeat=1')
  total = jax.device_count() * sum(row['gflops'] for row in found)
  assert total == pytest.approx(whole['gflops'])
  for part in ('encoder', 'observe', 'decoder'):
    assert parts[part, 'forward']['gflops'] < parts[part, 'backward']['gflops']
  assert parts['observe', 'backward']['gb'] > 0
  assert parts['imagine', '']['ms'] > 0


def test_time_of_an_operation_is_without_those_inside():
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
  found = dict(parts.alone(line))
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
def test_parts_by_scope(origin, part):
  assert parts.place(origin) == part


def test_policy(capsys):
  result = rows(capsys, 'policy', DEBUG, '--repeat=1')
  assert [row['envs'] for row in result] == [1, 4, 16, 64]
  for row in result:
    assert row['steps_per_s'] == pytest.approx(1e3 * row['envs'] / row['ms'])


def test_actor(capsys):
  (row,) = rows(capsys, 'actor', DEBUG, '--repeat=2')
  assert row['envs'] == 2
  assert row['steps_per_s'] == pytest.approx(2e3 / row['ms'])


def test_replay(capsys):
  (row,) = rows(capsys, 'replay', DEBUG, '--repeat=2')
  assert row['batch'] == '8x9'
  # deter and stoch of the debug size, four float32 observed, and the rest
  assert 32 * 4 + 4 + 4 * 4 < row['bytes_per_step'] < 250
  assert row['insert_steps_per_s'] > 0
  assert row['sample_ms'] > 0


def test_checkpoint(capsys):
  (row,) = rows(capsys, 'checkpoint', DEBUG, '--repeat=1')
  assert 0 < row['blocking_s'] <= row['save_s']
  assert row['restore_s'] > 0
  assert row['mb'] > 0.1


@pytest.mark.slow
def test_startup(capsys):
  cold, warm = rows(capsys, 'startup', DEBUG)
  assert (cold['cache'], warm['cache']) == ('cold', 'warm')
  assert warm['compile_s'] < cold['compile_s']


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
  assert row['steps_per_s'] > 0
  assert row['updates_per_s'] > 0
  assert 0 < row['learning'] + row['acting'] <= 1
  assert row['bound'] in ('learner', 'actor')


@pytest.mark.parametrize(
  ('learning', 'acting', 'learner_wait', 'actor_wait', 'bound'),
  [
    (0.7, 0.3, None, None, 'learner'),
    (0.2, 0.8, None, None, 'actor'),
    (0.97, 0.4, 0.02, 0.6, 'learner'),
    (0.97, 0.99, 0.02, None, 'learner'),
    (0.3, 1.0, 0.7, None, 'actor'),
  ],
)
def test_what_bounds_a_run(learning, acting, learner_wait, actor_wait, bound):
  shares = dict(
    learning=learning,
    acting=acting,
    learner_wait=learner_wait,
    actor_wait=actor_wait,
  )
  assert runs.bound(shares) == bound


def test_rates_are_those_of_the_longest_log_but_the_first():
  logs = [{'time': t} for t in (50, 60, 90, 100, 101)]
  assert runs.steady(logs) is logs[2]
  assert runs.steady(logs[:1]) is logs[0]


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
def test_mistakes_are_one_line(capsys, args, text):
  assert bench.main(args) == 1
  err = capsys.readouterr().err
  assert err.startswith('error: ')
  assert err.count('\n') == 1
  assert text in err
