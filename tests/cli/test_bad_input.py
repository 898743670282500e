"""Mistakes that show only once the environment or the logdir is opened."""

import textwrap

import pytest

from dreamer_tpu.cli import flags
from dreamer_tpu.errors import UserError
from dreamer_tpu.run import train
from tests.helpers import program

DEBUG = '--config=configs/gym.py:debug'
QUIET = '--config.metrics.outputs=log,jsonl'

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


def run(logdir, *args):
  """Does in this process what main.py does after it has joined the hosts."""
  command = flags.parse(['main.py', f'--logdir={logdir}', QUIET, DEBUG, *args])
  return train.main(*command)


@pytest.fixture
def message(capsys):
  def message(logdir, *args):
    """Returns the error: one line, before anything is compiled."""
    with pytest.raises(UserError) as error:
      run(logdir, *args)
    text = str(error.value)
    assert '\n' not in text
    assert 'Compiling' not in capsys.readouterr().out
    return text

  return message


def test_a_mistake_is_the_last_line_of_the_program(tmp_path):
  ended = program.run(tmp_path / 'run', DEBUG, '--config.task=gym_CartPol-v1')
  assert ended.code == 1
  assert len(ended.err) == 1, ended.err
  assert ended.err[0].startswith('error: ')
  assert 'gym_CartPole-v1' in ended.err[0]
  assert 'Compiling' not in ended.out
  assert program.files(tmp_path / 'run') == {}


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
def test_tasks(tmp_path, monkeypatch, message, task, parts):
  (tmp_path / 'broken_envs.py').write_text(textwrap.dedent(MODULE))
  monkeypatch.syspath_prepend(tmp_path)
  text = message(tmp_path / 'run', f'--config.task={task}')
  for part in (task.removeprefix('gym_'), *parts):
    assert part in text
  assert program.files(tmp_path / 'run') == {}


def test_checkpoint_of_another_configuration(tmp_path, message):
  assert run(tmp_path, '--config.run.steps=0') == 0
  before = program.files(tmp_path)
  text = message(tmp_path, '--config.agent.rssm.deter=64')
  assert 'agent.rssm.deter is 64, was 32' in text
  assert 'another logdir' in text
  text = message(tmp_path, '--config.task=gym_Pendulum-v1')
  assert "'gym_Pendulum-v1', was 'gym_CartPole-v1'" in text
  assert 'another logdir' in text
  assert program.files(tmp_path) == before


def test_a_logdir_in_use(tmp_path, message):
  first = program.Program(tmp_path, DEBUG, QUIET, '--config.run.steps=1e6')
  first.says('Filling the replay')
  text = message(tmp_path)
  assert 'in use' in text
  assert str(first.process.pid) in text
  first.process.terminate()
  assert first.end().code == 75
