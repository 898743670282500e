"""Environments in a Python of their own."""

import ast
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from dm_control import suite

import dreamer_tpu.envs
from configs.base import base
from dreamer_tpu.cli.validate import validate
from dreamer_tpu.envs import foreign, vector
from dreamer_tpu.envs.foreign import server
from dreamer_tpu.errors import UserError
from tests.helpers import old_python, program

ROOT = pathlib.Path(__file__).resolve().parents[2]
COUNTER = 'gym_tests.helpers.counter_env:Counter-v0'
NESTED = 'gym_tests.helpers.old_envs:Nested-v0'


@pytest.fixture(scope='module')
def old():
  """A Python 3.8 or 3.9 with gym 0.21 and NumPy below 2."""
  return str(old_python.make())


@pytest.fixture(autouse=True)
def folder(monkeypatch):
  """Some packages install tests of their own, which would be found first."""
  monkeypatch.setenv('PYTHONPATH', str(ROOT))


def make(task, python=sys.executable, num_envs=1, render=False, **options):
  config = base().env
  config.gym.python = python
  for key in ('restarts', 'timeout', 'stepping'):
    config[key] = options.pop(key, config[key])
  config.gym.update(options)
  return dreamer_tpu.envs.make_vector(task, num_envs, 5, config, render=render)


def act(env, value=0):
  return {
    key: np.full((env.num_envs, *space.shape), value, space.dtype)
    for key, space in env.act_space.items()
  }


def test_other_pythons_need_only_the_standard_library_and_numpy():
  folder = pathlib.Path(foreign.__file__).parent
  paths = set(folder.glob('*.py')) - {folder / 'client.py'}
  assert len(paths) >= 3
  for path in paths:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    for node in tree.body:
      if isinstance(node, ast.Import):
        names = {alias.name.split('.')[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        names = {node.module.split('.')[0]}
      else:
        continue
      assert names <= {*sys.stdlib_module_names, 'numpy'}, path


# Rolls out environments of the old gym, as anyone would, with given actions.
ROLLOUT = """
import json, sys
import gym, numpy as np
env_id, seeds, actions = json.load(sys.stdin)
rows = []
for seed, own in zip(seeds, actions):
  env = gym.make(env_id)
  env.seed(seed)
  obs, over = env.reset(), False
  rows.append([[obs.tolist(), 0.0, False, False]])
  for action in own:
    if over:
      obs, reward, over, info = env.reset(), 0.0, False, {}
    else:
      if isinstance(action, list):
        action = np.float32(action)
      obs, reward, over, info = env.step(action)
    limit = bool(info.get('TimeLimit.truncated'))
    rows[-1].append([obs.tolist(), float(reward), over, over and not limit])
print(json.dumps(rows))
"""


@pytest.mark.parametrize(
  ('task', 'scale'), [('CartPole-v1', 1), ('Pendulum-v1', 2)]
)
def test_an_old_gym(old, task, scale):
  """Compares all steps with the gym itself; Pendulum has a time limit."""
  env = make(f'gym_{task}', old, 2)
  rng = np.random.default_rng(0)
  obs, actions = [env.reset()], []
  for _ in range(210):
    if task == 'CartPole-v1':
      action = rng.integers(2, size=2, dtype=np.int32)
    else:
      action = rng.uniform(-1, 1, (2, 1)).astype(np.float32)
    actions.append(action)
    obs.append(env.step({'action': action}))
  env.close()
  given = (np.array(actions) * scale).swapaxes(0, 1).tolist()
  done = subprocess.run(
    [old, '-c', ROLLOUT],
    input=json.dumps([task, vector.seeds(5, 2), given]),
    capture_output=True,
    text=True,
    check=True,
  )
  rows = json.loads(done.stdout)
  for i in range(2):
    for ours, (seen, reward, last, terminal) in zip(obs, rows[i], strict=True):
      np.testing.assert_array_equal(ours['vector'][i], np.float32(seen))
      assert ours['reward'][i] == np.float32(reward)
      assert ours['is_last'][i] == last
      assert ours['is_terminal'][i] == terminal
  last, terminal = (
    np.array([o[key][0] for o in obs]) for key in ('is_last', 'is_terminal')
  )
  assert last.any()
  assert terminal.any() == (task == 'CartPole-v1')


def test_spaces_of_an_old_gym(old, caplog):
  env = make(NESTED, old)
  assert env.obs_space['image'].shape == (64, 64, 3)
  assert env.obs_space['inner/square'].n == 5
  assert env.obs_space['inner/switches'].nvec.tolist() == [2, 2, 2]
  assert env.obs_space['pair/0'].shape == (2,)
  assert env.obs_space['pair/1'].nvec.tolist() == [3, 3]
  assert 'word' not in env.obs_space
  env.reset()
  push = np.float32([[0.5, -1.0]])
  obs = env.step({'go': np.array([2]), 'push': push})
  assert obs['inner/square'] == [2]
  assert obs['inner/switches'].tolist() == [[1, 0, 1]]
  assert obs['pair/0'].tolist() == [[1.0, -2.0]]
  random = np.random.RandomState(vector.seeds(5, 1)[0])
  number = [random.randint(256) for _ in range(2)][1]
  assert (obs['image'] == number).all()
  assert obs['pair/1'].tolist() == [[1, number % 3]]
  assert obs['log/count'] == [1]
  assert obs['reward'] == [1.5]
  ends = [env.step(act(env)) for _ in range(3)][-1]
  assert ends['is_last']
  assert ends['is_terminal']
  env.close()
  env = make('gym_tests.helpers.old_envs:Limited-v0', old)
  env.reset()
  ends = [env.step(act(env)) for _ in range(3)][-1]
  assert (ends['is_last'][0], ends['is_terminal'][0]) == (True, False)
  env.close()
  env = make(NESTED, old, length=2)
  env.reset()
  ends = [env.step(act(env)) for _ in range(2)][-1]
  assert (ends['is_last'][0], ends['is_terminal'][0]) == (True, False)
  env.close()
  assert not caplog.messages


@pytest.mark.parametrize(
  ('event', 'line'),
  [
    (
      'raise2',
      r'environment 0 \(sample_envs\.py:\d+\): ZeroDivisionError: a bug in the '
      'environment',
    ),
    ('exit2', 'environment 0: its process died with exit code 3: .* crash'),
    ('kill2', 'environment 0: its process died with exit code 137: .* crash'),
    ('hang2', r'environment 0: no answer for 3 s \(env\.timeout\)'),
  ],
)
def test_failures_look_as_those_of_any_other(event, line, caplog):
  """Restarts, with one line; nothing is left of the processes."""
  kwargs = json.dumps({'level': event})
  timeout = 3.0 if event == 'hang2' else 60.0
  env = make(COUNTER, kwargs=kwargs, restarts=1, timeout=timeout)
  obs = [env.reset(), *(env.step(act(env)) for _ in range(3))]
  assert [o['count'][0] for o in obs] == [0, 1, 0, 1]
  assert [o['is_first'][0] for o in obs] == [1, 0, 1, 0]
  assert env.restarts == 1
  (message,) = caplog.messages
  assert re.fullmatch(
    rf'Task {COUNTER}, step 2: {line}; restart 1 of at most 1\.', message
  )
  with pytest.raises(UserError, match=r'env\.restarts=1') as caught:
    env.step(act(env))
  notes = getattr(caught.value, '__notes__', [''])
  assert ('in step' in notes[0]) == (event == 'raise2')
  assert gone({int(o['pid'][0]) for o in obs}) == (True, 2)


def gone(pids, seconds=60):
  """Returns whether processes end in time, and the number of them."""
  deadline = time.monotonic() + seconds
  while any(pathlib.Path(f'/proc/{pid}').exists() for pid in pids):
    if time.monotonic() > deadline:
      return False, len(pids)
    time.sleep(0.05)
  return True, len(pids)


ENDLESS = f"""
import sys, time
import dreamer_tpu.envs
from configs.base import base
config = base().env
config.gym.update(python=sys.executable, kwargs='{{"level": "child"}}')
env = dreamer_tpu.envs.make_vector({COUNTER!r}, 1, 0, config)
obs = env.reset()
print(int(obs['pid'][0]), int(obs['child'][0]), flush=True)
time.sleep(1000)
"""


def test_nothing_outlives_a_killed_parent():
  """The other Python and its children ignore signals, but not its death."""
  parent = subprocess.Popen(
    [sys.executable, '-c', ENDLESS], stdout=subprocess.PIPE, text=True, cwd=ROOT
  )
  pids = {int(pid) for pid in parent.stdout.readline().split()}
  assert len(pids) == 2
  for pid in pids:
    for number in (signal.SIGINT, signal.SIGTERM):
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
  assert not gone(pids, 0.3)[0]
  parent.kill()
  parent.wait()
  assert gone(pids)[0]


def test_mistakes_are_one_line(old, tmp_path):
  with pytest.raises(UserError) as info:
    make('gym_nowhere_to_be_found:CartPole-v1')
  assert str(info.value).startswith(
    'task gym_nowhere_to_be_found:CartPole-v1: the Python module '
    f"'nowhere_to_be_found' is missing in {sys.executable}: install it there"
  )
  with pytest.raises(UserError, match=r'environment 0.*CartPole-v9 not found'):
    make('gym_CartPole-v9', old)
  wrong = tmp_path / 'python'
  wrong.write_text('#!/bin/sh\nexit 1\n')
  wrong.chmod(0o755)
  with pytest.raises(UserError, match=r'exit code 1 at its start.* 3\.8'):
    make('gym_CartPole-v1', str(wrong))
  with pytest.raises(UserError, match=r'env\.stepping=serial'):
    make('gym_CartPole-v1', stepping='serial')
  with pytest.raises(UserError, match=r'python do not go with .*vector'):
    make('gym_CartPole-v1', vector=True)
  config = base()
  config.task = 'gym_CartPole-v1'
  config.env.gym.python = str(tmp_path / 'no' / 'python')
  with pytest.raises(UserError, match=r"env\.gym\.python='.*no/python' is no"):
    validate(config)


def test_screenshots(monkeypatch, caplog):
  monkeypatch.delenv('MUJOCO_GL', raising=False)
  env = make('gym_InvertedPendulum-v5', render=True)
  env.reset()
  shown = env.screenshots([0])[0]
  env.close()
  assert shown.shape == (128, 128, 3)
  assert shown.std() > 0
  env = make(COUNTER, render=True)
  env.reset()
  assert env.screenshots([0]) == {}
  assert 'it has no render()' in caplog.text
  env.close()


def test_environments_of_dm_env():
  """Compares spaces and steps with dm_control, which ends by a time limit."""
  load = lambda: suite.load('cartpole', 'swingup', {'random': 3})
  ours, theirs = server.Environment(load()), load()
  obs_space, act_space = ours.spaces
  specs = theirs.observation_spec()
  assert [key for key, _ in obs_space['spaces']] == list(specs)
  assert [x['shape'] for _, x in obs_space['spaces']] == [[3], [2]]
  assert act_space == {
    'kind': 'Box', 'low': -1.0, 'high': 1.0, 'shape': [1], 'dtype': 'float64'
  }  # fmt: skip
  obs, _ = ours.reset(None)
  timestep, cut = theirs.reset(), False
  while not cut:
    np.testing.assert_array_equal(
      obs['position'], timestep.observation['position']
    )
    timestep = theirs.step([0.3])
    obs, reward, over, cut, _ = ours.step(np.array([0.3]))
    assert reward == timestep.reward
    assert not over
  assert timestep.last()


def test_dm_env_is_as_in_this_python():
  """Compares spaces, seeds, repeats and the time limit."""
  runs = []
  for python in ('', sys.executable):
    config = base().env
    config.dm.update(python=python, repeat=300)
    task = 'dm_dm_control.suite.cartpole:balance'
    env = dreamer_tpu.envs.make_vector(task, 2, 5, config)
    rows = [env.reset(), *(env.step(act(env, 0.1)) for _ in range(6))]
    env.close()
    runs.append((env.obs_space, env.act_space, env.repeat))
    runs[-1] += ({key: [row[key] for row in rows] for key in rows[0]},)
  here, there = runs
  assert here[:3] == there[:3]
  for key, value in here[3].items():
    np.testing.assert_array_equal(value, there[3][key], err_msg=key)
  last = np.array(there[3]['is_last'])[:, 0]
  assert np.flatnonzero(last).tolist() == [4]
  assert not np.any(there[3]['is_terminal'])


def test_main_trains_in_an_old_python(old, tmp_path):
  """An environment that dies is restarted; the run ends as any other."""
  done = program.run(
    tmp_path / 'log',
    '--config=configs/gym.py:debug',
    '--config.task=gym_tests.helpers.old_envs:Fragile-v0',
    f'--config.env.gym.python={old}',
    '--config.env.gym.kwargs={"event": "exit60"}',
    '--config.run.steps=200',
    '--config.metrics.outputs=log,jsonl',
  )
  assert done.code == 0, done.err
  metrics = program.read(tmp_path / 'log' / 'metrics.jsonl')
  assert metrics[-1]['env/restarts'] == 1
  (line,) = [line for line in done.err if 'restart 1' in line]
  assert 'environment 0: its process died with exit code 3: out of' in line
