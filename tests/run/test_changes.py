"""The start of a run: what changed since its checkpoint, and its length."""

import pytest

from dreamer_tpu.cli import flags
from dreamer_tpu.run import train
from tests.helpers import program


@pytest.fixture
def run(capsys, caplog, tmp_path):
  def run(*args):
    """Runs CartPole in this process; returns its output and state."""
    command = flags.parse(
      [
        'main.py',
        f'--logdir={tmp_path}',
        '--config=configs/gym.py:debug',
        '--config.metrics.outputs=log,jsonl',
        '--config.run.report_every=0',
        *args,
      ]
    )
    assert train.main(*command) == 0
    return capsys.readouterr().out + caplog.text, program.state(tmp_path)

  return run


def test_changes_are_told_and_make_no_burst_of_updates(run):
  out, first = run('--config.run.steps=100')
  assert ' -> ' not in out
  assert first['update'] > 0
  out, paused = run('--config.run.steps=400', '--config.run.train_ratio=0')
  assert 'run.steps: 100 -> 400' in out
  assert 'run.train_ratio: 8.0 -> 0.0' in out
  assert 'Updates: none from now on, before one per 8 steps of 2 envi' in out
  assert paused['update'] == first['update']
  out, resumed = run(
    '--config.run.steps=432',
    '--config.run.train_ratio=32',
    '--config.run.envs=4',
    '--config.batch_size=16',
    '--config.replay.size=9000',
  )
  for line in (
    'batch_size: 8 -> 16',
    'run.envs: 2 -> 4',
    'replay.size: 10000 -> 9000',
    'Updates: one per 4 steps of 4 environments from now on, before none.',
  ):
    assert f'{line}\n' in out
  # One per four of 32 steps.
  assert abs(resumed['update'] - paused['update'] - 8) <= 1


def test_a_run_too_short_to_learn(run):
  # 64 sequences of 9 steps from 2 environments.
  out, state = run('--config.run.steps=78')
  assert 'ends at run.steps=78, and training begins at step 80' in out
  assert state['update'] == 0
  # The same run goes on.
  out, state = run('--config.run.steps=80')
  assert 'ends at run.steps=80' not in out
  assert state['update'] == 1
