"""Vector stepping: episodes, workers, seeds, failures, signals."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import dreamer_tpu.envs
from configs.base import base
from dreamer_tpu.envs import serial, vector, waiting, workers, wrappers
from dreamer_tpu.envs.serial import Serial
from dreamer_tpu.envs.together import Together
from dreamer_tpu.envs.waiting import Patience
from dreamer_tpu.errors import Interrupted, UserError
from tests.helpers.clock import Clock
from tests.helpers.sample_envs import Counter

ROOT = pathlib.Path(__file__).resolve().parents[2]

dreamer_tpu.envs.register('counter', Counter)


def make(
  level,
  num_envs=2,
  seed=0,
  stepping='auto',
  restarts=0,
  timeout=0.0,
  stop=lambda: False,
):
  config = base().env
  config.stepping, config.restarts = stepping, restarts
  config.timeout = timeout
  return dreamer_tpu.envs.make_vector(
    f'counter_{level}', num_envs, seed, config, stop
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
  assert set(env.obs_space) == {'count', 'acted', 'draw', 'pid', 'child'}
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
  with pytest.raises(UserError) as info:
    env.step(act())
  assert re.fullmatch(
    r'task counter_raise2, step 2: environment [01] \(sample_envs\.py:\d+\): '
    'ZeroDivisionError: a bug in the environment',
    str(info.value),
  )
  assert not any(pathlib.Path(f'/proc/{pid}').exists() for pid in pids)


@pytest.mark.parametrize('stepping', ['serial', 'workers'])
def test_an_environment_that_raises_is_restarted(stepping, caplog):
  env = make('raise2', stepping=stepping, restarts=2)
  obs = [env.reset()] + [env.step(act()) for _ in range(4)]
  rows = {k: [o[k][1] for o in obs] for k in obs[0]}
  np.testing.assert_array_equal(rows['count'], [0, 1, 0, 1, 0])
  np.testing.assert_array_equal(rows['reward'], [0, 1, 0, 1, 0])
  np.testing.assert_array_equal(rows['is_first'], [1, 0, 1, 0, 1])
  assert not any(rows['is_last'])
  assert not any(rows['is_terminal'])
  assert env.restarts == 4
  draws = np.array([o['draw'] for o in obs])
  assert len(np.unique(draws)) == draws.size
  assert len(caplog.messages) == 4
  assert re.fullmatch(
    r'Task counter_raise2, step 2: environment 0 \(sample_envs\.py:\d+\): '
    r'ZeroDivisionError: a bug in the environment; restart 1 of at most 2\.',
    caplog.messages[0],
  )
  env.step(act())
  with pytest.raises(UserError, match=r'step 6: environment . .*ZeroDiv'):
    env.step(act())

  again = make('raise2', stepping='serial', restarts=2)
  repeated = [again.reset()] + [again.step(act()) for _ in range(4)]
  np.testing.assert_array_equal(draws, [o['draw'] for o in repeated])


def test_restarts_count_anew_after_an_episode():
  """The environment raises in its third step, and then in each third one."""
  steps = []

  class Flaky(Counter):
    def step(self, action):
      steps.append(action)
      if len(steps) % 3 == 0:
        raise ConnectionResetError('gone')
      return super().step(action)

  def run(length, count):
    steps.clear()
    make = lambda: wrappers.Converted(Flaky(f'end{length}'))
    env = Serial([make], 'flaky', 2, Patience(0))
    env.reset(seed=[0])
    for _ in range(count):
      env.step(act(1))
    return env.restarts

  assert run(length=1, count=30) > 2
  with pytest.raises(UserError, match='ConnectionResetError: gone'):
    run(length=99, count=9)
  assert run(length=99, count=8) == 2


@pytest.mark.parametrize('stepping', ['serial', 'workers'])
def test_an_environment_that_hangs_is_restarted(stepping, caplog):
  """Environment 1 hangs in its third step; 0 and 2 go on as they were."""
  env = make('hang3of1', 3, stepping=stepping, restarts=1, timeout=3)
  obs = [env.reset()] + [env.step(act(3)) for _ in range(4)]
  counts = np.array([o['count'] for o in obs])
  np.testing.assert_array_equal(counts[:, 0], [0, 1, 2, 3, 4])
  np.testing.assert_array_equal(counts[:, 1], [0, 1, 2, 0, 1])
  np.testing.assert_array_equal(counts[:, 2], counts[:, 0])
  np.testing.assert_array_equal(obs[3]['is_first'], [False, True, False])
  assert not np.array([o['is_last'] for o in obs]).any()
  assert env.restarts == 1
  assert caplog.messages == [
    'Task counter_hang3of1, step 3: environment 1: no answer for 3 s '
    '(env.timeout); restart 1 of at most 1.'
  ]
  env.step(act(3))
  with pytest.raises(UserError, match='step 6: environment 1: no answer for'):
    env.step(act(3))


@pytest.mark.parametrize('event', ['exit3of1', 'kill3of1'])
def test_a_worker_that_dies_is_restarted(event, caplog):
  env = make(event, 3, restarts=1)
  obs = [env.reset()] + [env.step(act(3)) for _ in range(4)]
  np.testing.assert_array_equal([o['count'][1] for o in obs], [0, 1, 2, 0, 1])
  np.testing.assert_array_equal([o['count'][0] for o in obs], [0, 1, 2, 3, 4])
  assert obs[0]['pid'][1] != obs[-1]['pid'][1]
  code = 3 if event.startswith('exit') else -9
  assert f'environment 1: its process died with exit code {code}' in caplog.text
  env.close()


@pytest.mark.parametrize('stepping', ['serial', 'workers'])
def test_an_environment_that_exits_or_interrupts(stepping, caplog, capfd):
  """Its code raises SystemExit or KeyboardInterrupt, as it may at a key."""
  for event, name in (('leave', 'SystemExit: 5'), ('key', 'KeyboardInterrupt')):
    env, folder = make(f'{event}2', stepping=stepping, restarts=1), os.getcwd()
    obs = [env.reset()] + [env.step(act()) for _ in range(2)]
    assert os.getcwd() == folder
    np.testing.assert_array_equal([o['count'][0] for o in obs], [0, 1, 0])
    env.close()
    assert re.search(rf'environment 1 \(.*\): {name}; restart 1', caplog.text)
  assert capfd.readouterr().err == ''


def test_a_worker_that_is_killed_while_idle(caplog):
  env = make('end99', restarts=1)
  pids = env.reset()['pid'].astype(int).tolist()
  os.kill(pids[1], signal.SIGKILL)
  os.waitid(os.P_PID, pids[1], os.WEXITED | os.WNOWAIT)
  obs = env.step(act())
  np.testing.assert_array_equal(obs['count'], [1, 0])
  assert 'environment 1: its process died with exit code -9' in caplog.text
  env.close()
  assert gone(pids, seconds=0)


def test_a_vector_environment_of_a_suite_is_restarted_as_a_whole(caplog):
  """Their third steps raise, hang, and exit."""
  made = []

  def make_whole():
    makers = [lambda: Counter('end99')] * 2
    env = wrappers.ConvertedVector(SyncVectorEnv(makers))
    step, number = env.step, len(made)
    env.step = lambda action: (
      step(action) if steps.append(action) or len(steps) % 3 else fail(number)
    )
    made.append(env)
    return env

  def fail(number):
    if number == 1:
      clock.advance(60)
      time.sleep(1000)
    if number == 2:
      sys.exit('no license')
    raise ConnectionResetError('gone')

  steps, clock = [], Clock()
  whole = Together(make_whole, 'whole', 2, Patience(60, clock=clock))
  env = vector.GymVector(whole, 'whole', 0)
  obs = [env.reset()] + [env.step(act()) for _ in range(7)]
  np.testing.assert_array_equal(
    [o['count'][1] for o in obs], [0, 1, 2, 0, 1, 2, 0, 1]
  )
  first = [o['is_first'].all() for o in obs]
  np.testing.assert_array_equal(np.flatnonzero(first), [0, 3, 6])
  draws = np.array([o['draw'] for o in obs])
  assert len(np.unique(draws)) == draws.size
  assert len(made) == 3
  assert env.restarts == 2
  assert 'step 3: all environments (test_vector.py' in caplog.messages[0]
  assert 'step 6: all environments: no answer for 60 s' in caplog.messages[1]
  env.step(act())
  with pytest.raises(UserError, match=r'step 9: all .*SystemExit: no license'):
    env.step(act())


@pytest.mark.parametrize('stepping', ['serial', 'workers'])
def test_a_stop_request_ends_the_wait_for_an_environment(stepping, monkeypatch):
  monkeypatch.setattr(waiting, 'GRACE', 0.2)
  asked = []
  env = make('hang2', stepping=stepping, timeout=1000, stop=lambda: asked)
  pids = {int(pid) for pid in env.reset()['pid']} - {os.getpid()}
  env.step(act())
  threading.Timer(0.2, asked.append, ['stop']).start()
  with pytest.raises(Interrupted):
    env.step(act())
  monkeypatch.setattr(workers, 'CLOSING', 0.1)
  env.close()
  assert gone(pids, seconds=0)


def test_a_close_that_hangs_does_not_delay_the_end(monkeypatch):
  monkeypatch.setattr(serial, 'CLOSING', 0.1)
  monkeypatch.setattr(Counter, 'close', lambda self: time.sleep(1000))
  env = make('end9', stepping='serial')
  begin = time.monotonic()
  env.close()
  assert time.monotonic() - begin < 100  # Theirs lasts a thousand.


def test_patience():
  clock = Clock()
  looks = []

  def ready(seconds):
    looks.append(clock())
    clock.advance(1)
    return False

  with pytest.raises(waiting.Hung, match='no answer for 3 s'):
    Patience(3, clock=clock).wait(ready)
  assert clock() == 3
  with pytest.raises(waiting.Hung, match='no answer for 30 s'):
    Patience(3, clock=clock).wait(ready, starts=True)
  assert clock() == 33
  # The limit counts from the last progress.
  with pytest.raises(waiting.Hung):
    Patience(3, clock=clock).wait(ready, progress=lambda: min(clock(), 40))
  assert clock() == 43
  with pytest.raises(Interrupted):
    Patience(0, lambda: clock() >= 60, clock=clock).wait(ready)
  assert clock() == 60 + waiting.GRACE


@pytest.mark.parametrize('level', ['broken', 'brokenworker'])
def test_broken_environment(level):
  message = (
    rf'^task counter_{level}: environment [01] \(sample_envs\.py:\d+\): '
    'LookupError: no such level'
  )
  with pytest.raises(UserError) as info:
    make(level, stepping='serial' if level == 'broken' else 'workers')
  assert re.fullmatch(message, str(info.value))
  frames = info.value.__notes__[0].splitlines()
  assert len(frames) <= 10
  assert "raise LookupError('no such level')" in frames[-1]


def test_a_worker_that_dies_while_starting():
  with pytest.raises(UserError, match=r'environment 0: its process died .* 4:'):
    make('dies')


def test_children_of_environments(tmp_path):
  """They may have processes, which end with them, also if they hang."""
  env = make('child9', restarts=0, stepping='workers')
  children = {int(x) for x in env.reset()['child']}
  assert not gone(children, seconds=0)
  env.close()
  assert gone(children)


def test_wrong_actions():
  env = make('end5', stepping='serial')
  env.reset()
  with pytest.raises(ValueError, match=r'shape \(3,\), expected \(2,\)'):
    env.step(act(3))
  env.close()
  env.close()


class Numbered(Counter):
  """Counts from its number, which its process knows, too."""

  def __init__(self, level, config, index, role):
    super().__init__(level)
    self._own = index
    variables = os.environ['DREAMER_ENV_INDEX'], os.environ['DREAMER_ENV_ROLE']
    assert variables == (str(index), role)
    assert role == 'eval'

  def _obs(self, action):
    return {**super()._obs(action), 'count': self._own}


@pytest.mark.parametrize('stepping', ['serial', 'workers'])
def test_number_and_role(stepping, monkeypatch):
  dreamer_tpu.envs.register('numbered', Numbered)
  monkeypatch.setenv('DREAMER_ENV_ROLE', 'mine')
  config = base().env
  config.stepping = stepping
  env = dreamer_tpu.envs.make_vector(
    'numbered_raise2', 2, 0, config, role='eval', first=7
  )
  obs = [env.reset()] + [env.step(act()) for _ in range(2)]
  assert env.restarts == 2
  np.testing.assert_array_equal([x['count'] for x in obs], [[7, 8]] * 3)
  assert os.environ['DREAMER_ENV_ROLE'] == 'mine'
  assert 'DREAMER_ENV_INDEX' not in os.environ
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


def gone(pids, seconds=60):
  deadline = time.monotonic() + seconds
  while any(pathlib.Path(f'/proc/{pid}').exists() for pid in pids):
    if time.monotonic() > deadline:
      return False
    time.sleep(0.05)
  return True


def test_script_without_main_guard_or_close(launch):
  process, pids, line = launch('')
  assert line == ['jax', 'False']
  _, err = process.communicate(timeout=120)
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
  process.communicate(timeout=120)
  assert gone(pids)


class Corridor(gymnasium.vector.VectorEnv):
  """Two walks of four places, written as one environment."""

  def __init__(self, mode=AutoresetMode.NEXT_STEP):
    self.num_envs = 2
    self.metadata = {'autoreset_mode': mode}
    self.single_observation_space = gymnasium.spaces.Discrete(4, start=1)
    self.single_action_space = gymnasium.spaces.Discrete(2, start=-1)
    self._place = np.ones(2, int)

  def reset(self, *, seed=None, options=None):
    assert seed is None or isinstance(seed, int)
    self._place[:] = 1
    return self._place, {}

  def step(self, actions):
    assert set(actions.tolist()) <= {-1, 0}
    ended = self._place == 4
    # The same array each time, as some do.
    self._place[:] = np.where(ended, 1, self._place + actions + 1)
    return self._place, -actions, self._place == 4, ended & False, {}


def test_a_vector_environment_of_a_user():
  config = base().env
  dreamer_tpu.envs.register('corridor', lambda *args: Corridor(), vector=True)
  env = dreamer_tpu.envs.make_vector('corridor_x', 2, 0, config)
  obs = [env.reset()]
  obs += [env.step({'action': np.array([1, 0])}) for _ in range(5)]
  assert [o['vector'].tolist() for o in obs] == [
    [0, 0], [1, 0], [2, 0], [3, 0], [0, 0], [1, 0]
  ]  # fmt: skip
  assert [o['is_terminal'][0] for o in obs] == [0, 0, 0, 1, 0, 0]
  assert [o['is_first'].tolist() for o in obs[3:]] == [[0, 0], [1, 0], [0, 0]]
  assert [o['reward'].tolist() for o in obs[1:3]] == [[0, 1], [0, 1]]
  mode = AutoresetMode.SAME_STEP
  dreamer_tpu.envs.register(
    'corridor', lambda *args: Corridor(mode), vector=True
  )
  with pytest.raises(UserError, match=r'SAME_STEP.*NEXT_STEP'):
    dreamer_tpu.envs.make_vector('corridor_x', 2, 0, config)


def test_a_vector_entry_point():
  config = base().env
  config.gym.vector = True
  env = dreamer_tpu.envs.make_vector('gym_CartPole-v1', 3, 0, config)
  obs = [env.reset()]
  act = {'action': np.array([0, 1, 1])}
  obs += [env.step(act) for _ in range(20)]
  last = np.stack([o['is_last'] for o in obs])
  first = np.stack([o['is_first'] for o in obs])
  assert last.any()
  np.testing.assert_array_equal(last[:-1], first[1:])
  config.gym.repeat = 2
  with pytest.raises(UserError, match=r'env\.gym\.vector'):
    dreamer_tpu.envs.make_vector('gym_CartPole-v1', 3, 0, config)


def test_spaces_that_cannot_be_sent_are_one_line():
  class Own(gymnasium.spaces.Box):
    def __init__(self):
      super().__init__(-1, 1, (2,))
      self.function = lambda: 0

  class Env(Counter):
    def __init__(self):
      super().__init__()
      self.observation_space = Own()

  dreamer_tpu.envs.register('own', lambda name, config: Env())
  with pytest.raises(UserError, match=r'environment 0.*pickle'):
    dreamer_tpu.envs.make_vector('own_x', 1, 0, base().env)


def test_a_vector_environment_may_reuse_its_arrays():
  class Buffer(Corridor):
    def __init__(self):
      super().__init__()
      self.single_observation_space = gymnasium.spaces.Box(0, 9, ())
      self._place = np.ones(2, np.float32)

  dreamer_tpu.envs.register('buffer', lambda *args: Buffer(), vector=True)
  env = dreamer_tpu.envs.make_vector('buffer_x', 2, 0, base().env)
  obs = [env.reset(), *(env.step(act()) for _ in range(2))]
  assert [o['vector'][0] for o in obs] == [1, 2, 3]
