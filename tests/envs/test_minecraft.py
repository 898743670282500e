"""Minecraft through a stand-in of MineRL 0.4.4."""

import pathlib

import numpy as np
import pytest

import dreamer_tpu.envs
from configs.base import base
from dreamer_tpu.envs.suites import minecraft
from dreamer_tpu.errors import UserError
from tests.helpers import old_python

STANDINS = pathlib.Path(__file__).resolve().parents[1] / 'helpers' / 'standins'
DIAMOND = (
  ('attack', 12),
  ('craft_planks', 12),
  ('craft_stick', 4),
  ('craft_crafting_table', 1),
  ('place_crafting_table', 1),
  ('craft_wooden_pickaxe', 1),
  ('equip_wooden_pickaxe', 1),
  ('turn_down', 3),
  ('attack', 12),
  ('craft_stone_pickaxe', 1),
  ('equip_stone_pickaxe', 1),
  ('craft_furnace', 1),
  ('attack', 3),
  ('place_furnace', 1),
  ('smelt_iron_ingot', 3),
  ('craft_iron_pickaxe', 1),
  ('equip_iron_pickaxe', 1),
  ('attack', 2),
)
FIRST = (
  'attack craft_planks craft_stick craft_crafting_table craft_wooden_pickaxe '
  'attack craft_stone_pickaxe craft_furnace attack smelt_iron_ingot '
  'craft_iron_pickaxe attack'
)


@pytest.fixture(autouse=True)
def standin(monkeypatch):
  monkeypatch.syspath_prepend(STANDINS)
  monkeypatch.setenv('PYTHONPATH', str(STANDINS))


def world(name, **options):
  config = base().env.minecraft
  config.update(options)
  return minecraft.Minecraft(name, config)


def act(env, name):
  names = list(minecraft.ACTIONS[env._name])
  return env.step(np.int32(names.index(name)))


def commands(env):
  """Returns the last commands that the game got, by verb."""
  sent = env._env._env._env._env._world.commands[-13:]
  return {verb: words for verb, *words in map(str.split, sent)}


def test_a_diamond():
  """Each of the 12 items is rewarded once, as it first appears."""
  env = world('diamond')
  assert env.action_space.n == 25
  obs, _ = env.reset(seed=0)
  assert obs in env.observation_space
  assert obs['inventory'].sum() == 36  # Empty slots are air.
  rewards = []
  for name, times in DIAMOND:
    for _ in range(times):
      obs, reward, over, cut, _ = act(env, name)
      assert obs in env.observation_space
      assert not over
      assert not cut
      rewards.append((name, reward))
  assert [reward for _, reward in rewards if reward] == [1.0] * 12
  assert ' '.join(name for name, reward in rewards if reward) == FIRST
  items = dict(zip(env._items, obs['inventory'], strict=True))
  most = dict(zip(env._items, obs['inventory_max'], strict=True))
  assert 'log2' not in items
  assert (items['diamond'], items['iron_ore'], most['iron_ore']) == (2, 0, 3)
  assert (items['crafting_table'], most['crafting_table']) == (0, 1)
  assert obs['log/inventory/diamond'] == 2
  hands = sorted([*env._items, 'log2', 'other'])
  assert hands[obs['equipped'].argmax()] == 'iron_pickaxe'
  assert obs['equipped'].sum() == 1
  assert (obs['health'], obs['hunger'], obs['breath']) == pytest.approx(
    (1, 0.9, 0.5)
  )
  env.reset()
  assert act(env, 'attack')[1] == 1  # Anew in each episode.


def test_commands_of_the_game():
  env = world('diamond')
  env.reset(seed=0)
  act(env, 'noop')
  verbs = 'craft', 'craftNearby', 'smeltNearby'
  nothing = {
    **{key: ['0'] for key in minecraft.NOOP},
    'camera': ['0.0', '0.0'],
    **{key: ['none'] for key in ('place', 'equip', *verbs)},
  }
  del nothing['nearbyCraft'], nothing['nearbySmelt']
  assert commands(env) == nothing
  act(env, 'craft_iron_pickaxe')
  assert commands(env) == {**nothing, 'craftNearby': ['iron_pickaxe']}
  act(env, 'turn_left')
  assert commands(env) == {**nothing, 'camera': ['0.0', '-15.0']}
  # Nobody looks further than 60 degrees up or down.
  for pitch in (15.0, 15.0, 15.0, 15.0, 0.0, 0.0):
    act(env, 'turn_down')
    assert commands(env)['camera'] == [str(pitch), '0.0']
  # A jump lasts for 10 steps, and goes forward.
  jumps = [
    act(env, 'jump' if not i else 'back') and commands(env) for i in range(11)
  ]
  assert [x['jump'] for x in jumps] == [['1']] * 10 + [['0']]
  assert [x['forward'] for x in jumps] == [['1']] * 10 + [['0']]
  act(env, 'attack')
  act(env, 'noop')
  assert commands(env)['attack'] == ['0']


def test_slow_blocks_get_long_attacks():
  env = world('wood', break_speed=1.0)
  env.reset(seed=0)
  rewards = [act(env, 'attack')[1]]
  rewards += [act(env, 'noop')[1] for _ in range(28)]
  assert commands(env)['attack'] == ['1']
  rewards += [act(env, 'attack')[1] for _ in range(11)]
  assert rewards == [0.0] * 39 + [1.0]


def test_wood_climb_and_death():
  env = world('wood')
  assert env.action_space.n == 12
  env.reset(seed=0)
  assert [act(env, 'attack')[1] for _ in range(3)] == [1, 1, 1]
  assert act(env, 'back')[1] == pytest.approx(-0.01 / 20)
  ends = [act(env, 'back') for _ in range(19)]
  assert [x[2:4] for x in ends] == [(False, False)] * 18 + [(True, False)]
  assert ends[-1][0]['health'] == 0
  env = world('climb', length=12)
  env.reset(seed=0)
  steps = [act(env, 'jump' if not i else 'noop') for i in range(12)]
  assert [x[1] for x in steps] == [1.0] * 10 + [0.0] * 2
  assert [x[2:4] for x in steps] == [(False, False)] * 11 + [(False, True)]


def test_worlds_follow_the_seed():
  """Birch and oak count as the same; worlds differ and can be repeated."""
  env = world('wood', size=(48, 64))
  images = []
  for seed in (1, None, None, 1):
    obs, _ = env.reset(seed=seed)
    assert obs['image'].shape == (48, 64, 3)
    images.append(obs['image'].tobytes())
    assert act(env, 'attack')[0]['log/inventory/log'] == 1
  assert images[0] == images[3]
  assert len(set(images)) == 3


def test_an_old_python_gives_the_same_and_survives_a_lost_game(
  monkeypatch, caplog
):
  runs = []
  for python in ('', str(old_python.make())):
    config = base().env
    config.minecraft.python = python
    monkeypatch.setenv('STANDIN_MINERL_LOST', '9')
    env = dreamer_tpu.envs.make_vector('minecraft_diamond', 1, 3, config)
    obs = [env.reset()]
    for action in (1, 1, 12, 13, 3, 3, 5, 10, 9, 1, 1):
      obs.append(env.step({'action': np.array([action], np.int32)}))
    env.close()
    runs.append({key: np.stack([o[key][0] for o in obs]) for key in obs[0]})
  here, there = runs
  assert here.keys() == there.keys()
  for key, value in here.items():
    np.testing.assert_array_equal(value, there[key], err_msg=key)
  assert there['reward'].tolist() == [0, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1]
  assert np.flatnonzero(there['is_first']).tolist() == [0, 10]
  assert not there['is_last'].any()
  lines = [x for x in caplog.messages if 'Connection timed out!' in x]
  assert len(lines) == 2
  assert 'step 10: environment 0' in lines[1]


def test_a_missing_package_is_one_line(monkeypatch):
  monkeypatch.undo()
  with pytest.raises(UserError, match=r"'minerl' is missing: install MineRL"):
    dreamer_tpu.envs.spaces('minecraft_diamond', base().env)
