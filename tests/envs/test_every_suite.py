"""The same checks for every suite, and for environments with planted faults."""

import dataclasses
import pathlib

import numpy as np
import pytest

import dreamer_tpu.envs
from dreamer_tpu.envs import registry
from tests.helpers import env_checks
from tests.helpers.env_checks import Case
from tests.helpers.faulty_envs import Faulty, FaultyVector

STANDINS = pathlib.Path(env_checks.__file__).parent / 'standins'

CASES = (
  Case(
    task='atari_pong',
    steps=100,
    limit=51,
    # ALE does not draw the last frames of an episode, so not `longer`.
    short={'length': 204},
    amid={'length': 202},
    terminal=400,
    ending={'task': 'atari_breakout'},
    repeat=4,
    repeating={'sticky': 0.0, 'pool': 1},
  ),
  Case(
    task='brax_inverted_pendulum',
    needs='brax',
    slow=True,
    terminal=60,  # It falls before any limit.
  ),
  Case(task='bsuite_catch/0', needs='bsuite', steps=40, terminal=40),
  Case(
    task='craftax_Craftax-Classic-Symbolic-v1',
    needs='craftax',
    slow=True,
    limit=4,
    short={'length': 4},
    longer={'length': 8},
  ),
  Case(
    task='crafter_reward',
    # Without sorting, the addresses of objects make it differ after a while.
    steps=300,
    limit=5,
    short={'length': 5},
    longer={'length': 9},
  ),
  Case(
    task='dm_dm_control.suite.cartpole:balance',
    limit=125,
    short={'repeat': 8},  # Of 1000 steps.
    repeat=2,
  ),
  Case(
    task='dmc_walker_walk',
    options={'repeat': 2},
    limit=143,
    short={'repeat': 7},  # Of 1000 frames.
    repeat=2,
  ),
  Case(task='dmc_cartpole_swingup', options={'image': True}, steps=3),
  Case(
    task='dmlab_explore_goal_locations_small',
    limit=43,
    short={'repeat': 7},  # Of 300 frames in the stand-in.
    terminal=60,
    ending={'task': 'dmlab_psychlab_visual_search'},
    repeat=4,
  ),
  Case(task='dummy_disc', varies=False, terminal=9, ending={'length': 4}),
  Case(task='dummy_cont', varies=False),
  Case(task='gym_CartPole-v1', steps=60, terminal=120),
  Case(
    task='gym_Pendulum-v1',
    limit=6,
    short={'repeat': 4, 'length': 24},
    longer={'repeat': 4, 'length': 40},
    amid={'repeat': 4, 'length': 21},
    repeat=4,
  ),
  Case(
    task='gymnax_CartPole-v1',
    needs='gymnax',
    limit=4,
    short={'length': 8, 'repeat': 2},
    amid={'length': 7, 'repeat': 2},
    terminal=60,
  ),
  Case(task='metaworld_reach-v3', needs='envpool', limit=500),
  Case(
    task='myosuite_MyoHandFlashlightRandom-v0',
    needs='envpool',
    limit=50,
    terminal=60,
    ending={'task': 'myosuite_myoHandPenTwirlFixed-v0'},
  ),
  Case(
    task='loconav_ant_maze_s_1hz',
    options={'image': False},
    limit=60,
    short={'image': False},
    repeat=2,
    repeating={'image': False},
  ),
  Case(task='memmaze_9x9', needs='memory_maze', steps=3, slow=True),
  Case(
    task='minecraft_diamond',
    limit=5,
    short={'length': 5},
    longer={'length': 9},
    terminal=600,
    ending={'task': 'minecraft_wood'},
  ),
  Case(
    task='pinpad_three',
    steps=60,
    limit=5,
    short={'length': 5},
    longer={'length': 9},
  ),
  Case(
    task='playground_CartpoleBalance',
    needs='mujoco_playground',
    slow=True,
    rounding=1e-5,
    limit=4,
    short={'length': 8, 'repeat': 2},
    longer={'length': 12, 'repeat': 2},
    repeat=2,
  ),
  Case(
    task='procgen_maze',
    needs='envpool',
    limit=500,
    terminal=200,
    ending={'task': 'procgen_leaper', 'mode': 'easy'},
  ),
)


@pytest.fixture(autouse=True)
def standins(monkeypatch):
  """Finds the packages that cannot be installed."""
  monkeypatch.syspath_prepend(STANDINS)


@pytest.mark.parametrize(
  ('case', 'check'),
  [
    pytest.param(
      case,
      check,
      id=f'{case.task}-{check.__name__}',
      marks=[pytest.mark.slow] if case.slow else [],
    )
    for case in CASES
    for check in env_checks.checks_of(case)
  ],
)
def test_suite(case, check):
  case.skip()
  check(case)


def test_every_suite_has_a_case():
  cases = {case.task.split('_')[0] for case in CASES}
  assert cases == set(registry.BUILTIN) - {'data'}  # Has no environment.


dreamer_tpu.envs.register('faulty', Faulty)
dreamer_tpu.envs.register('faults', FaultyVector, vector=True)

DEFAULT = {'length': 0, 'end': 0, 'repeat': 1}
SHORT = {**DEFAULT, 'repeat': 2, 'length': 8}
SOUND = Case(
  task='faulty_sound',
  options=DEFAULT,
  limit=4,
  short=SHORT,
  longer={**SHORT, 'length': 20},
  amid={**SHORT, 'length': 7},
  terminal=20,
  ending={**DEFAULT, 'end': 6},
  repeat=3,
  repeating=DEFAULT,
)


@pytest.mark.parametrize('task', ['faulty_sound', 'faults_sound'])
def test_sound_environments_pass(task):
  case = dataclasses.replace(SOUND, task=task)
  checks = env_checks.checks_of(case)
  assert len(checks) == 5 + (task == 'faulty_sound')
  for check in checks:
    check(case)


@pytest.mark.parametrize(
  ('task', 'check'),
  [
    ('faulty_unseeded', env_checks.check_seeds),
    ('faulty_constant', env_checks.check_seeds),
    ('faulty_shared', env_checks.check_seeds),
    ('faulty_swapped', env_checks.check_limit),
    ('faulty_endless', env_checks.check_limit),
    ('faulty_counted', env_checks.check_limit),
    ('faulty_dropped', env_checks.check_limit),
    ('faulty_swapped', env_checks.check_terminal),
    ('faulty_unsummed', env_checks.check_repeat),
    ('faulty_early', env_checks.check_repeat),
    ('faulty_bounds', env_checks.check_spaces),
    ('faulty_type', env_checks.check_spaces),
    ('faulty_rendering', env_checks.check_rendering),
    ('faults_lost', env_checks.check_limit),
    ('faults_paid', env_checks.check_limit),
  ],
)
def test_planted_faults_are_found(task, check):
  with pytest.raises(AssertionError):
    check(dataclasses.replace(SOUND, task=task))


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('is_first', True),
    ('is_last', True),
    ('is_terminal', True),
    ('reward', np.nan),
    ('draw', -np.inf),
    ('other', 0.0),
  ],
)
def test_wrong_steps_are_found(key, value):
  steps = env_checks.roll('faulty_sound', DEFAULT, 9)
  config = env_checks.config_of('faulty_sound', DEFAULT)
  spaces, _ = dreamer_tpu.envs.spaces('faulty_sound', config)
  steps[key] = steps.get(key, steps['reward']).copy()
  steps[key][4, 1] = value
  with pytest.raises(AssertionError):
    env_checks.check_steps(steps, spaces)
