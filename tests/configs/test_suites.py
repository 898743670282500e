"""Suites and presets, against the tables of the paper."""

import importlib
import pathlib
import re

import pytest

from configs import base, presets, sizes
from dreamer_tpu.cli import flags, validate
from dreamer_tpu.config import flatten
from dreamer_tpu.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]

# task, steps, environments, train ratio, size (height, width, gray).
SUITES = {
  'atari': ('atari_pong', 51_000_000, 16, 32, (96, 96, True)),
  'atari100k': ('atari_pong', 110_000, 1, 256, (64, 64, False)),
  'bsuite': ('bsuite_mnist/0', 10**10, 1, 1024, None),
  'crafter': ('crafter_reward', 1_100_000, 1, 512, (64, 64, False)),
  'dmc_proprio': ('dmc_walker_walk', 1_100_000, 16, 1024, None),
  'dmc_vision': ('dmc_walker_walk', 1_100_000, 16, 256, (64, 64, False)),
  'dmlab': (
    'dmlab_explore_goal_locations_small',
    26_000_000,
    16,
    32,
    (64, 64, False),
  ),
  'dummy': ('dummy_disc', 1_000_000, 16, 32, (64, 64, False)),
  'loconav': ('loconav_ant_maze_m', 10**10, 16, 256, (64, 64, False)),
  'memmaze': ('memmaze_9x9', 100_000_000, 16, 32, None),
  'metaworld': ('metaworld_reach-v3', 1_100_000, 16, 1024, None),
  'myosuite': (
    'myosuite_myoElbowPose1D6MFixed-v0',
    1_100_000,
    16,
    1024,
    None,
  ),
  'minecraft': (
    'minecraft_diamond',
    10_000_000_000,
    16,
    32,
    (64, 64, False),
  ),
  'pinpad': ('pinpad_three', 10_000_000, 16, 32, None),
  'procgen': ('procgen_coinrun', 110_000_000, 16, 64, (96, 96, False)),
}

# Not in the paper.
OTHERS = 'brax', 'craftax', 'dm', 'gym', 'gymnax', 'playground'

# deter, hidden, classes, depth, units.
SIZES = {
  'size1m': (512, 64, 4, 4, 64),
  'size12m': (2048, 256, 16, 16, 256),
  'size25m': (3072, 384, 24, 24, 384),
  'size50m': (4096, 512, 32, 32, 512),
  'size100m': (6144, 768, 48, 48, 768),
  'size200m': (8192, 1024, 64, 64, 1024),
  'size400m': (12288, 1536, 96, 96, 1536),
}


def suite(name, names=''):
  return importlib.import_module(f'configs.{name}').get_config(names)


def widths(agent):
  """Returns every width that a size sets, one tuple per part."""
  heads = {agent[x].units for x in ('reward', 'cont', 'policy', 'value')}
  parts = {(x.depth, x.units) for x in (agent.encoder, agent.decoder)}
  return agent.rssm.deter, agent.rssm.hidden, agent.rssm.classes, parts, heads


def expected(name):
  deter, hidden, classes, depth, units = SIZES[name]
  return deter, hidden, classes, {(depth, units)}, {units}


@pytest.mark.parametrize('name', SUITES)
def test_suite_has_the_published_settings(name):
  config = suite(name)
  task, steps, envs, ratio, image = SUITES[name]
  assert config.task == task
  assert (config.run.steps, config.run.envs) == (steps, envs)
  assert isinstance(config.run.steps, int)
  assert config.run.train_ratio == ratio
  group = config.env[task.split('_')[0]]
  if image is None:
    assert not group.get('image', False)
    assert group.get('proprio', True)
  else:
    assert group.get('image', True)
    assert (*group.size, group.get('gray', False)) == image


@pytest.mark.parametrize('size', SIZES)
def test_size_sets_every_width(size):
  config = suite('atari', size)
  assert widths(config.agent) == expected(size)
  validate.validate(config)


def test_default_sizes():
  assert widths(base.base().agent) == expected('size200m')
  assert widths(suite('dmc_proprio').agent) == expected('size1m')
  assert widths(suite('gym').agent) == expected('size1m')


def test_presets_apply_in_order():
  assert suite('atari', 'debug,size12m').agent.rssm.deter == 2048
  both = suite('atari', 'size12m,debug')
  assert both.agent == suite('atari', 'debug').agent
  # What the second preset leaves alone stays.
  assert suite('atari', 'debug,size12m').batch_length == both.batch_length


def test_presets_do_not_reach_other_configurations():
  suite('atari', 'debug')
  assert suite('atari').batch_size == 16


@pytest.mark.parametrize(
  ('wrong', 'near'),
  [('size40m', 'size400m'), ('dbug', 'debug'), ('x', 'size1m')],
)
def test_unknown_preset_names_the_nearest(wrong, near):
  with pytest.raises(UserError, match=f"'{wrong}'; did you mean '{near}'"):
    flags.load(f'configs/crafter.py:size1m,{wrong}')


@pytest.mark.parametrize('name', [*SUITES, *OTHERS])
@pytest.mark.parametrize('names', ['', 'debug', 'size1m,debug'])
def test_every_suite_is_valid(name, names):
  config = suite(name, names)
  validate.validate(config)
  assert flatten(config).keys() == flatten(base.base()).keys()


@pytest.mark.parametrize('name', [*SUITES, *OTHERS])
def test_debug_is_small(name):
  config = suite(name, 'debug')
  agent = config.agent
  assert config.batch_size * config.batch_length <= 64
  assert config.run.steps == 1000
  assert agent.rssm.deter <= 64
  assert max(agent.encoder.depth, agent.decoder.depth) <= 4
  every = [config.run[f'{x}_every'] for x in ('log', 'report', 'save')]
  assert max(every) <= 5


def test_help_names_every_preset_and_suite():
  text = (ROOT / 'dreamer_tpu' / '__main__.py').read_text().split('"""')[1]
  named = set(re.findall(r'\w+', text))
  assert set(presets.PRESETS) <= named
  assert {*SUITES, *OTHERS} <= named
  assert set(sizes.UNITS) == set(SIZES)
