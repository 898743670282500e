"""Mistakes that show only once the environment or the logdir is opened."""

import importlib
import re
import textwrap

import jax
import numpy as np
import pytest

from dreamer_tpu.checkpoint import layout
from dreamer_tpu.cli import flags
from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics.system import memory_limit
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

  class SequenceObs(Broken):
    observation_space = spaces.Sequence(spaces.Discrete(2))

  class GraphAction(Broken):
    action_space = spaces.Graph(spaces.Discrete(2), None)

  for kind in (SequenceObs, GraphAction):
    gymnasium.register(f'{kind.__name__}-v0', kind)
"""


def run(logdir, *args):
  """Does in this process what main.py does after it has joined the hosts."""
  command = flags.parse(['main.py', f'--logdir={logdir}', QUIET, DEBUG, *args])
  return train.main(*command)


@pytest.fixture
def message(capsys):
  def message(logdir, *args, first=False):
    """Returns the error: one line, before anything is compiled.

    With `first`, before the environments start as well.
    """
    capsys.readouterr()
    with pytest.raises(UserError) as error:
      run(logdir, *args)
    text = str(error.value)
    assert '\n' not in text
    out = capsys.readouterr().out
    assert 'Compiling' not in out
    assert ('Starting' in out) != first
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
    ('gym_broken_envs:SequenceObs-v0', ['Sequence', 'Box', 'Dict']),
    ('gym_broken_envs:GraphAction-v0', ['action', 'Graph', 'Discrete']),
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
  text = message(tmp_path, '--config.agent.rssm.deter=64', first=True)
  assert 'agent.rssm.deter is 64, was 32' in text
  assert 'another logdir' in text
  text = message(tmp_path, '--config.task=gym_Pendulum-v1', first=True)
  assert "'gym_Pendulum-v1', was 'gym_CartPole-v1'" in text
  assert 'another logdir' in text
  assert program.files(tmp_path) == before
  # Options that shape no array are free to change.
  assert run(tmp_path, '--config.run.steps=0', '--config.agent.opt.lr=1') == 0


def test_other_spaces_than_those_of_the_checkpoint(
  tmp_path, message, monkeypatch
):
  kind = 'gym_tests.helpers.toys:Resized-v0'
  args = f'--config.task={kind}', '--config.run.steps=0'
  monkeypatch.setenv('TOYS_SIZE', '3')
  assert run(tmp_path, *args) == 0
  monkeypatch.setenv('TOYS_SIZE', '5')
  text = message(tmp_path, *args)
  assert 'float32[5, 16], was float32[3, 16]' in text


@pytest.mark.parametrize('script', ['train', 'eval_only'])
def test_a_source_that_is_not_there(tmp_path, capsys, script):
  command = flags.parse(
    [
      'main.py',
      f'--logdir={tmp_path / "run"}',
      QUIET,
      DEBUG,
      f'--config.script={script}',
      f'--config.run.from_checkpoint={tmp_path}/typo',
    ]
  )
  with pytest.raises(UserError, match=r"No checkpoint in '.*/typo'"):
    importlib.import_module(f'dreamer_tpu.run.{script}').main(*command)
  assert 'Starting' not in capsys.readouterr().out
  assert not (tmp_path / 'run').exists()


def test_a_logdir_in_use(tmp_path, message):
  first = program.Program(tmp_path, DEBUG, QUIET, '--config.run.steps=1e6')
  first.says('Filling the replay')
  text = message(tmp_path)
  assert 'in use' in text
  assert str(first.process.pid) in text
  first.process.terminate()
  assert first.end().code == 75


def test_a_replay_that_does_not_fit(tmp_path, message, capsys):
  args = (
    '--config.task=gym_tests.helpers.toys:Pictures-v0',
    '--config.env.gym.size=64,64',
    '--config.replay.size=5e9',
  )
  text = message(tmp_path, *args, '--config.run.steps=1e10')
  # Images of 64 x 64 x 3 bytes.
  assert re.search(r'replay\.size=5000000000 needs 6\d,\d00 GB when full', text)
  suggested = int(re.search(r'--config\.replay\.size=(\d+)\.', text)[1])
  limit = memory_limit()[0]
  assert 0.4 * limit < suggested * 12_400 < limit
  # The run ends before the replay is full.
  assert run(tmp_path, *args, '--config.run.steps=0') == 0
  assert 'Memory at most: ' in capsys.readouterr().out


def weights(logdir):
  """Returns the parameters of the newest checkpoint by name."""
  step = layout.find_step(logdir)
  shapes = layout.read_shapes(step)
  wanted = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype)
    for name, x in layout.flatten(shapes).items()
    if name.startswith('params/')
  }
  return layout.load_arrays(step, shapes, wanted)


def test_transfer_to_other_actions(tmp_path, message, capsys):
  source, target = tmp_path / 'source', tmp_path / 'target'
  assert run(source, '--config.run.steps=0') == 0
  args = (
    '--config.task=gym_tests.helpers.toys:ThreeMoves-v0',
    f'--config.run.from_checkpoint={source}',
    '--config.run.steps=0',
    '--config.seed=1',
  )
  text = message(target, *args)
  assert 'policy/action_logits/kernel [16, 3] here, [16, 2] there' in text
  assert 'from_checkpoint_mismatch=fresh' in text
  assert run(target, *args, '--config.run.from_checkpoint_mismatch=fresh') == 0
  out = capsys.readouterr().out
  line = next(x for x in out.splitlines() if 'Fresh, of another' in x)
  assert 'policy/action_logits/kernel [16, 3] here, [16, 2] there' in line
  old, new = weights(source), weights(target)
  differing = [k for k in old if old[k].shape != new[k].shape]
  assert f'({len(differing)})' in line
  assert len(differing) == 3
  for name in old.keys() - set(differing):
    np.testing.assert_array_equal(old[name], new[name])
