"""Suites of EnvPool against its own interface."""

import importlib.util
import sys

import numpy as np
import pytest

import dreamer_tpu.envs
from dreamer_tpu.envs import registry, vector
from dreamer_tpu.envs.suites import procgen
from dreamer_tpu.errors import UserError
from tests.helpers import env_checks

SEED = 4
MYO = 'myoElbowPose1D6MFixed-v0'
needs_envpool = pytest.mark.skipif(
  not importlib.util.find_spec('envpool'),
  reason='envpool is not installed',
)


def make(task, num_envs=2, **options):
  config = env_checks.config_of(task, options)
  return dreamer_tpu.envs.make_vector(task, num_envs, SEED, config)


@needs_envpool
@pytest.mark.parametrize(
  ('task', 'task_id', 'options', 'own', 'steps'),
  [
    (
      'procgen_leaper',
      'LeaperEasy-v0',
      {'mode': 'easy', 'num_levels': 3, 'start_level': 7, 'size': (64, 64)},
      {'num_levels': 3, 'start_level': 7, 'channel_first': False},
      2000,
    ),
    ('metaworld_reach-v3', 'MetaWorld/Reach-v3', {}, {}, 510),
    (f'myosuite_{MYO}', MYO, {}, {}, 110),
  ],
)
def test_suite_is_envpool(task, task_id, options, own, steps):
  """Each environment alone, reset by hand after its last step."""
  import envpool

  env = make(task, **options)
  (key,), (name,) = env.obs_space, env.act_space
  pools = [
    envpool.make_gymnasium(task_id, num_envs=1, seed=[seed], **own)
    for seed in vector.seeds(SEED, 2)
  ]
  rng = np.random.default_rng(0)
  env.act_space[name].seed(0)
  ours = env.reset()
  theirs = [(pool.reset()[0], 0.0, False, False, {}) for pool in pools]
  ends = 0
  for _ in range(steps):
    for i, (obs, reward, terminated, truncated, _) in enumerate(theirs):
      np.testing.assert_array_equal(
        ours[key][i], obs[0].astype(ours[key].dtype)
      )
      assert ours['reward'][i] == np.float32(reward)
      assert ours['is_terminal'][i] == terminated
      assert ours['is_last'][i] == (terminated or truncated)
    act = np.stack([env.act_space[name].sample() for _ in pools])
    if act.dtype.kind == 'i':
      act = rng.integers(env.act_space[name].n, size=2, dtype=np.int32)
    over = ours['is_last'].copy()
    ours = env.step({name: act})
    for i, pool in enumerate(pools):
      if over[i]:
        ends += 1
        theirs[i] = (pool.reset()[0], 0.0, False, False, {})
        assert ours['is_first'][i]
      else:
        theirs[i] = pool.step(act[i : i + 1])
  env.close()
  assert ends


@needs_envpool
def test_procgen_sizes_and_levels():
  large = make('procgen_coinrun', mode='easy')
  small = make('procgen_coinrun', mode='easy', size=(64, 64))
  assert large.obs_space['image'].shape == (96, 96, 3)
  assert small.act_space['action'].n == 15
  shown, drawn = large.reset()['image'][0], small.reset()['image'][0]
  back = shown[1::3, 1::3].astype(float)  # Between the middles of four pixels.
  np.testing.assert_allclose(
    back, drawn.reshape(32, 2, 32, 2, 3).mean((1, 3)), atol=2
  )
  one = make('procgen_coinrun', num_levels=1, mode='easy')
  images = one.reset()['image']
  np.testing.assert_array_equal(images[0], images[1])
  for env in (large, small, one):
    env.close()


@needs_envpool
def test_the_longer_limit_of_a_mode():
  env = make('procgen_jumper', 1, mode='memory')
  env.reset()
  steps = [env.step({'action': np.full(1, 4, np.int32)}) for _ in range(2000)]
  env.close()
  assert [i for i, x in enumerate(steps, 1) if x['is_last']] == [2000]
  assert not steps[-1]['is_terminal']


@needs_envpool
@pytest.mark.parametrize(
  ('options', 'line'),
  [
    (
      {'mode': 'memory'},
      "env.procgen.mode='memory' is not a mode of coinrun; modes: easy, hard, "
      'exploration',
    ),
    ({'mode': 'exploration', 'num_levels': 5}, 'set num_levels to 0'),
    ({'start_level': 5}, 'set num_levels'),
    ({'start_level': 2**31, 'num_levels': 1}, 'beyond the last level'),
  ],
)
def test_procgen_mistakes_are_one_line(options, line):
  with pytest.raises(UserError, match=line) as info:
    make('procgen_coinrun', **options)
  assert '\n' not in str(info.value)


@needs_envpool
def test_every_name_is_a_task_of_envpool():
  import envpool

  known = set(envpool.list_all_envs())
  games = set(procgen.names('', None))
  assert len(games) == 16
  assert {f'{x.capitalize()}Hard-v0' for x in games} <= known
  for suite, prefix in (('metaworld', 'MetaWorld/'), ('myosuite', 'MyoSuite/')):
    names = registry.suite_of(suite).names('', None)
    theirs = {x for x in known if x.startswith(prefix)}
    same = {f'{prefix}{x}'.replace('-', '').lower() for x in names}
    assert same == {x.replace('-', '').lower() for x in theirs}


@pytest.mark.parametrize('suite', ['procgen', 'metaworld', 'myosuite'])
def test_without_envpool_the_command_is_named(suite, monkeypatch):
  for name in [x for x in sys.modules if x.startswith('envpool.')]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, 'envpool', None)
  line = f"'envpool.*' is missing: pip install .\\[{suite}\\]$"
  with pytest.raises(UserError, match=line):
    make(f'{suite}_x')
