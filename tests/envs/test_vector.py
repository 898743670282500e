"""Vector stepping: episodes, workers, seeds, failures, signals."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import dreamer_tpu.envs
from configs.base import base
from dreamer_tpu.envs import vector, workers
from dreamer_tpu.errors import UserError
from tests.helpers.sample_envs import Counter

ROOT = pathlib.Path(__file__).resolve().parents[2]

dreamer_tpu.envs.register('counter', Counter)


def make(level, num_envs=2, seed=0, stepping='auto'):
  config = base().env
  config.stepping = stepping
  return dreamer_tpu.envs.make_vector(
    f'counter_{level}', num_envs, seed, config
  )


def act(num_envs=2, value=1):
  return {'action': np.full(num_envs, value, np.int32)}


@pytest.mark.parametrize('stepping', ['serial', 'workers'])
@pytest.mark.parametrize('end', ['end', 'limit'])
def test_episodes(stepping, end):
  env = make(f'{end}3', stepping=stepping)
  obs = [env.reset()] + [env.step(act()) for _ in range(8)]
  env.close()
  rows = {k: [o[k][1] for o in obs] for k in obs[0]}
  np.testing.assert_array_equal(rows['count'], [0, 1, 2, 3, 0, 1, 2, 3, 0])
  np.testing.assert_array_equal(rows['reward'], [0, 1, 1, 1, 0, 1, 1, 1, 0])
  first = [i in (0, 4, 8) for i in range(9)]
  last = [i in (3, 7) for i in range(9)]
  np.testing.assert_array_equal(rows['is_first'], first)
  np.testing.assert_array_equal(rows['is_last'], last)
  terminal = last if end == 'end' else [False] * 9
  np.testing.assert_array_equal(rows['is_terminal'], terminal)
  assert obs[0]['reward'].dtype == np.float32
  assert obs[0]['is_last'].dtype == bool
  assert set(env.obs_space) == {'count', 'acted', 'draw', 'pid'}
  # Log scalars of infos are NaN where missing; other infos are dropped.
  half = np.array([o['log/half'][0] for o in obs[1:]])
  np.testing.assert_array_equal(half[:3], [0.5, np.nan, 1.5])
  assert 'other' not in obs[-1]


def test_workers_are_processes_without_jax_and_arrays_are_fresh():
  import jax

  assert jax.__name__ in sys.modules
  env = make('end99', stepping='workers')
  first = env.reset()
  copies = {k: v.copy() for k, v in first.items()}
  pids = {int(pid) for pid in first['pid']}
  obs = env.step(act())
  env.close()
  assert len(pids | {os.getpid()}) == 3
  assert not obs['log/jax'].any()
  for key, value in copies.items():
    np.testing.assert_array_equal(first[key], value)
  assert not any(pathlib.Path(f'/proc/{pid}').exists() for pid in pids)


def test_seeds():
  def draws(seed, num_envs, stepping):
    env = make('end5', num_envs, seed, stepping)
    obs = [env.reset()] + [env.step(act(num_envs)) for _ in range(12)]
    env.reset()
    again = env.reset()['draw']
    env.close()
    return np.array([o['draw'] for o in obs] + [again])

  serial = draws(7, 3, 'serial')
  np.testing.assert_array_equal(serial, draws(7, 3, 'workers'))
  assert len(np.unique(serial)) == serial.size
  assert not np.isin(draws(8, 3, 'serial'), serial).any()
  # Written out, so that recorded runs stay reproducible.
  words = np.random.SeedSequence(7).generate_state(3) // 2
  assert vector.seeds(7, 3) == words.tolist()
  direct = [np.random.Generator(np.random.PCG64(int(w))) for w in words]
  first = [np.float32(rng.uniform()) for rng in direct]
  np.testing.assert_array_equal(serial[0], first)


@pytest.mark.parametrize('stepping', ['serial', 'workers'])
def test_exception_in_an_environment(stepping):
  env = make('raise2', stepping=stepping)
  pids = {int(pid) for pid in env.reset()['pid']} - {os.getpid()}
  env.step(act())
  with pytest.raises(RuntimeError) as info:
    env.step(act())
  assert re.fullmatch(
    r'task counter_raise2, step 2: environment [01] \(sample_envs\.py:\d+\): '
    'ZeroDivisionError: a bug in the environment',
    str(info.value),
  )
  assert not any(pathlib.Path(f'/proc/{pid}').exists() for pid in pids)


def test_a_worker_that_dies():
  env = make('exit2')
  env.reset()
  env.step(act())
  message = r'^task counter_exit2, step 2: environment 0 \(exit code 3\).* died'
  with pytest.raises(RuntimeError, match=message):
    env.step(act())
  env.close()


def test_a_worker_that_is_killed_while_idle():
  env = make('end99')
  pid = int(env.reset()['pid'][1])
  os.kill(pid, signal.SIGKILL)
  with pytest.raises(RuntimeError, match=r'environment 1 \(exit code -9\)'):
    env.step(act())


def test_broken_environment():
  with pytest.raises(LookupError, match='no such level'):
    make('broken')


def test_broken_environment_in_workers_only():
  message = (
    r'^task counter_brokenworker: environment [01] \(sample_envs\.py:\d+\): '
    'LookupError: no such level$'
  )
  with pytest.raises(RuntimeError, match=message):
    make('brokenworker')


def test_a_worker_that_hangs_is_killed():
  env = make('hang1')
  pids = {int(pid) for pid in env.reset()['pid']}
  env._env.step_async(act())
  workers.stop(env._env, timeout=0.1)
  assert gone(pids, seconds=0)


def test_a_worker_that_dies_while_starting():
  with pytest.raises(RuntimeError, match='died while starting'):
    make('dies')


def test_wrong_actions():
  env = make('end5', stepping='serial')
  env.reset()
  with pytest.raises(ValueError, match=r'shape \(3,\), expected \(2,\)'):
    env.step(act(3))
  env.close()
  env.close()


def test_at_least_one_environment():
  with pytest.raises(UserError, match='at least one'):
    make('end5', num_envs=0)


PROGRAM = r"""
import os, sys, time
import gymnasium, numpy as np
import dreamer_tpu.envs
from configs.base import base
import jax

class Mine(gymnasium.Env):
  observation_space = gymnasium.spaces.Box(-1, 1, (2,))
  action_space = gymnasium.spaces.Discrete(2)
  def reset(self, *, seed=None, options=None):
    os.write(1, b'pid %d\n' % os.getpid())  # In one piece.
    return np.zeros(2, np.float32), {}
  def step(self, action):
    jax_is_here = float('jax' in sys.modules)
    return np.full(2, jax_is_here, np.float32), 0.0, False, False, {}

dreamer_tpu.envs.register('mine', lambda name, config: Mine())
env = dreamer_tpu.envs.make_vector('mine_x', 2, 0, base().env)
env.reset()
obs = env.step({'action': np.zeros(2, np.int32)})
print('jax', obs['vector'].any(), flush=True)
"""


@pytest.fixture
def launch(tmp_path):
  started = []

  def start(ending):
    script = tmp_path / 'program.py'
    script.write_text(PROGRAM + ending)
    process = subprocess.Popen(
      [sys.executable, script],
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    started.append(process)
    lines = [process.stdout.readline().split() for _ in range(3)]
    pids = [int(line[1]) for line in lines[:2]]
    return process, pids, lines[2]

  yield start
  for process in started:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)


def gone(pids, seconds=10):
  deadline = time.monotonic() + seconds
  while any(pathlib.Path(f'/proc/{pid}').exists() for pid in pids):
    if time.monotonic() > deadline:
      return False
    time.sleep(0.05)
  return True


def test_script_without_main_guard_or_close(launch):
  process, pids, line = launch('')
  assert line == ['jax', 'False']
  _, err = process.communicate(timeout=30)
  assert process.returncode == 0, err
  assert 'Traceback' not in err
  assert gone(pids)


def test_workers_outlive_signals_but_not_the_parent(launch):
  ending = """
import signal
signal.signal(signal.SIGINT, lambda *args: print('signal', flush=True))
signal.signal(signal.SIGTERM, lambda *args: print('signal', flush=True))
print('ready', flush=True)
for _ in range(10_000):
  env.step({'action': np.zeros(2, np.int32)})
  time.sleep(0.01)
"""
  process, pids, _ = launch(ending)
  assert process.stdout.readline() == 'ready\n'
  for number in (signal.SIGINT, signal.SIGTERM):
    os.killpg(process.pid, number)
    assert process.stdout.readline() == 'signal\n'
  time.sleep(0.3)
  assert process.poll() is None
  assert all(pathlib.Path(f'/proc/{pid}').exists() for pid in pids)
  os.kill(process.pid, signal.SIGKILL)
  process.communicate(timeout=30)
  assert gone(pids)
