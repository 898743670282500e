"""Mistakes that only show once the environment or the logdir is looked at."""

import os
import textwrap

import pytest

from tests.helpers import program

DEBUG = '--config=configs/gym.py:debug'

MODULE = """
  import gymnasium
  import numpy as np
  from gymnasium import spaces

  class Broken(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)

  class TupleObs(Broken):
    observation_space = spaces.Tuple([spaces.Discrete(2)] * 2)

  class GraphAction(Broken):
    action_space = spaces.Graph(spaces.Discrete(2), None)

  class Volume(Broken):
    observation_space = spaces.Box(0, 1, (8, 8, 8), np.float32)

  for kind in (TupleObs, GraphAction, Volume):
    gymnasium.register(f'{kind.__name__}-v0', kind)
"""


def check(ended, *parts):
  """One readable line, before anything is compiled."""
  assert ended.code == 1
  assert len(ended.err) == 1, ended.err
  assert ended.err[0].startswith('error: ')
  for part in parts:
    assert part in ended.err[0]
  assert 'Compiling' not in ended.out


@pytest.mark.parametrize(
  ('task', 'parts'),
  [
    ('gym_CartPol-v1', ['CartPol-v1', 'gym_CartPole-v1']),
    ('atari_pogn', ['pogn', 'atari_pong']),
    ('dmc_walker_wlk', ['walker_wlk', 'dmc_walker_walk']),
    ('gym_broken_envs:TupleObs-v0', ['Tuple', 'Box', 'Dict']),
    ('gym_broken_envs:GraphAction-v0', ['action', 'Graph', 'Discrete']),
    ('gym_broken_envs:Volume-v0', ['rank 3', 'uint8']),
    ('gym_no_such_module:Env-v0', ['no_such_module', 'install']),
  ],
)
def test_tasks(tmp_path, task, parts):
  (tmp_path / 'broken_envs.py').write_text(textwrap.dedent(MODULE))
  path = os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])
  ended = program.run(
    tmp_path / 'run', DEBUG, f'--config.task={task}', PYTHONPATH=path
  )
  check(ended, task.removeprefix('gym_'), *parts)
  assert program.files(tmp_path / 'run') == {}


def test_checkpoint_of_another_configuration(tmp_path):
  ended = program.run(tmp_path, DEBUG, '--config.run.steps=0')
  assert ended.code == 0, ended.err
  before = program.files(tmp_path)
  ended = program.run(tmp_path, DEBUG, '--config.agent.rssm.deter=64')
  check(ended, 'agent.rssm.deter is 64, was 32', 'another logdir')
  ended = program.run(tmp_path, DEBUG, '--config.task=gym_Pendulum-v1')
  check(ended, "'gym_Pendulum-v1', was 'gym_CartPole-v1'", 'another logdir')
  assert program.files(tmp_path) == before


def test_a_logdir_in_use(tmp_path):
  first = program.Program(tmp_path, DEBUG, '--config.run.steps=1e6')
  first.says('Filling the replay')
  check(program.run(tmp_path, DEBUG), 'in use', str(first.process.pid))
  first.process.terminate()
  assert first.end().code == 75
