"""DMLab through a stand-in of its Python module, driven by hand as well."""

import pathlib
import re
import zlib

import numpy as np
import pytest

import dreamer_tpu.envs
from configs.base import base
from dreamer_tpu.envs.suites import dmlab
from dreamer_tpu.errors import UserError
from tests.helpers import old_python

STANDINS = pathlib.Path(__file__).resolve().parents[1] / 'helpers' / 'standins'
GOALS = 'explore_goal_locations_small'
WORDS = 'language_select_described_object'
# Forward, backward, strafe left and right, small and large turns, look down and
# up, small and large turns with forward, fire.
PUBLIC = {
  0: [0, 0, 0, 1, 0, 0, 0],
  3: [0, 0, 1, 0, 0, 0, 0],
  6: [-60, 0, 0, 0, 0, 0, 0],
  8: [0, 10, 0, 0, 0, 0, 0],
  11: [10, 0, 0, 1, 0, 0, 0],
  14: [0, 0, 0, 0, 1, 0, 0],
}


@pytest.fixture(autouse=True)
def standin(monkeypatch):
  monkeypatch.syspath_prepend(STANDINS)
  monkeypatch.setenv('PYTHONPATH', str(STANDINS))


def level(name, role='train', **options):
  config = base().env.dmlab
  config.update(options)
  return dmlab.Level(name, config, role=role)


def lab(env):
  """Returns the module's own object in an environment."""
  return env._env._env._env._lab


def test_30_levels():
  assert len(set(dmlab.LEVELS)) == 30
  assert not any(name.endswith('_test') for name in dmlab.LEVELS)
  with pytest.raises(UserError, match=f'did you mean dmlab_{GOALS}'):
    dreamer_tpu.envs.spaces(f'dmlab_{GOALS}l', base().env)


def test_a_level_is_the_module():
  """Compares a whole episode with the module, stepped as documented."""
  import deepmind_lab

  env = level(GOALS, size=(48, 64))
  assert env.action_space.n == 15
  assert env.observation_space['image'].shape == (48, 64, 3)
  theirs = deepmind_lab.Lab(
    f'contributed/dmlab30/{GOALS}',
    ['RGB_INTERLEAVED'],
    config={'height': '48', 'width': '64', 'logLevel': 'WARN'},
  )
  assert lab(env).config == theirs.config
  for episode in range(2):
    obs, _ = env.reset(seed=7 if not episode else None)
    seed = np.random.Generator(np.random.PCG64(7)).integers(2**31 - 1, size=2)
    theirs.reset(seed=int(seed[episode]))
    ends = []
    for action, raw in [*PUBLIC.items()] * 13:
      image = theirs.observations()['RGB_INTERLEAVED']
      np.testing.assert_array_equal(obs['image'], image)
      expected = theirs.step(np.array(raw, np.intc), num_steps=4)
      obs, reward, *ends, _ = env.step(np.int32(action))
      assert reward == expected
      assert any(ends) == (not theirs.is_running())
      if any(ends):
        break
    # The time is over; the last image stays.
    assert ends == [False, True]
    np.testing.assert_array_equal(obs['image'], image)
    assert theirs.num_steps() == 300


def test_an_end_before_its_time_is_terminal():
  env = level('psychlab_visual_search')
  env.reset(seed=0)
  assert env.step(0)[2:4] == (False, False)
  assert env.step(14)[2:4] == (True, False)
  with pytest.raises(RuntimeError, match='wrong status'):
    env.step(0)
  env.reset()
  assert env.step(0)[2:4] == (False, False)


def test_instructions_are_hashed():
  env = level(WORDS)
  assert env.observation_space['instr'].shape == (1024,)
  obs, _ = env.reset(seed=0)
  text = lab(env).observations()['INSTR']
  assert text.endswith(('room.', 'quickly!'))
  table = np.random.default_rng(seed=0).normal(0.0, 1.0, (65536, 32))
  tokens = re.findall(r'[a-z]+|[.,!]', text.lower())
  rows = [zlib.crc32(token.encode('utf-8')) % 65536 for token in tokens]
  rows += [0] * (32 - len(rows))
  expected = np.concatenate([table[row] for row in rows]).astype(np.float32)
  np.testing.assert_array_equal(obs['instr'], expected)
  assert dmlab.embed('').reshape(32, 32)[31].tolist() == expected[-32:].tolist()
  long = ' '.join(['red'] * 40)
  assert (dmlab.embed(long).reshape(32, 32) == dmlab.embed('red')[:32]).all()


def test_roles():
  """Training never sees held-out levels."""
  name = 'rooms_collect_good_objects'
  for suffix in ('train', 'test'):
    env = level(f'{name}_{suffix}')
    assert lab(env).level.endswith(f'{name}_train')
    assert 'mixerSeed' not in lab(env).config
  env = level(f'{name}_test', 'eval')
  assert lab(env).level.endswith(f'{name}_test')
  assert lab(env).config['allowHoldOutLevels'] == 'true'
  assert lab(env).config['mixerSeed'] == '1611489005'


def test_an_old_python_gives_the_same():
  """Steps in workers, in both Pythons."""
  episodes = []
  for python in ('', str(old_python.make())):
    config = base().env
    config.dmlab.python = python
    env = dreamer_tpu.envs.make_vector(f'dmlab_{WORDS}', 2, 3, config)
    obs = [env.reset()]
    for action in [*PUBLIC] * 14:
      obs.append(env.step({'action': np.full(2, action, np.int32)}))
    env.close()
    episodes.append({key: np.stack([o[key] for o in obs]) for key in obs[0]})
  here, there = episodes
  assert here.keys() == there.keys()
  for key, value in here.items():
    np.testing.assert_array_equal(value, there[key], err_msg=key)
  assert np.flatnonzero(there['is_last'][:, 0]).tolist() == [75]
  assert not there['is_terminal'].any()
  assert there['image'].shape[1:] == (2, 64, 64, 3)
  assert there['instr'].shape[1:] == (2, 1024)


def test_a_missing_package_is_one_line(monkeypatch):
  monkeypatch.undo()
  with pytest.raises(UserError, match=r"'deepmind_lab' is missing: build it"):
    dreamer_tpu.envs.spaces(f'dmlab_{GOALS}', base().env)
