"""Errors and signals: runs save before they end, or go on."""

import signal

import psutil
import pytest

from tests.helpers import program

CARTPOLE = '--config=configs/gym.py:debug'
BREAKS = '--config.task=gym_tests.helpers.toys:Breaks-v0'


@pytest.mark.parametrize('script', ['train', 'parallel'])
def test_an_environment_that_fails_for_good(tmp_path, script):
  ended = program.run(
    tmp_path,
    CARTPOLE,
    BREAKS,
    f'--config.script={script}',
    '--config.env.stepping=serial',
    '--config.run.envs=1',
    '--config.env.restarts=2',
    '--config.run.save_every=0',
    '--config.run.report_every=0',
    # Only the end is logged: updates may follow a log at the last step.
    '--config.run.log_every=0',
  )
  assert ended.code == 1
  # Two restarts, the lines of the environment's code, and the error.
  assert all('restart' in line for line in ended.err[:2])
  assert len(ended.err) <= 2 + 10 + 1
  assert "raise ConnectionResetError('the simulator is gone')" in ended.err[-2]
  assert ended.err[-1].startswith('error: task gym_tests.helpers.toys:Breaks')
  assert 'the simulator is gone' in ended.err[-1]
  saved = program.state(tmp_path)
  filled, last = program.steps(tmp_path)
  assert filled < 100  # From the end of filling.
  assert last == saved['step']
  # Steps, first steps of the 14 episodes after the first, and restarts.
  assert saved['step'] == 149 + 14 + 2
  assert saved['update'] > 0
  line = program.read(tmp_path / 'metrics.jsonl')[-1]
  assert line['step'] == saved['step']
  assert line['update'] == saved['update']
  assert line['env/restarts'] == 2

  ended = program.run(
    tmp_path, CARTPOLE, BREAKS, f'--config.run.steps={saved["step"] + 20}'
  )
  assert ended.code == 0, ended.err
  assert program.state(tmp_path)['step'] == saved['step'] + 20


def test_threads_and_processes_of_environments_do_not_outlive_the_run(tmp_path):
  until = tmp_path / 'until'
  run = program.Program(
    tmp_path / 'logdir',
    CARTPOLE,
    '--config.task=gym_tests.helpers.toys:Stays-v0',
    '--config.env.stepping=serial',
    '--config.env.restarts=0',
    STAYS_UNTIL=str(until),
  )
  run.says('Filling the replay')
  children = psutil.Process(run.process.pid).children(recursive=True)
  until.touch()
  ended = run.end()
  assert ended.code == 1
  assert 'the simulator is gone' in ended.err[-1]
  assert ended.seconds < 600  # Theirs last a thousand.
  assert children
  assert not psutil.wait_procs(children, timeout=60)[1]


def test_signals_while_filling(tmp_path):
  """The first checkpoint is one of the start; USR1 saves and goes on."""
  filling = program.Program(
    tmp_path,
    CARTPOLE,
    '--config.batch_size=4000',
    '--config.batch_length=32',
    '--config.replay.size=1e6',
    '--config.run.steps=1e6',
    '--config.run.save_every=0',
  )
  filling.says('Filling the replay')
  filling.wait_for(lambda: program.steps(tmp_path) == [0])
  filling.process.send_signal(signal.SIGUSR1)
  filling.wait_for(lambda: program.steps(tmp_path)[-1] > 0)
  newest = program.steps(tmp_path)[-1]
  assert filling.process.poll() is None
  filling.process.send_signal(signal.SIGHUP)
  ended = filling.end()
  assert ended.code == 75, ended.err
  assert program.state(tmp_path)['step'] > newest
  assert ended.out.count('SIGUSR1: saving') == 1
  assert 'SIGHUP: saving and stopping' in ended.out


def test_user_signal_2_stops_and_nohup_outlives_the_terminal(tmp_path):
  run = program.Program(
    tmp_path, CARTPOLE, '--config.run.steps=1e6', prefix=('nohup',)
  )
  run.says('/1M')
  run.process.send_signal(signal.SIGHUP)
  shown = len(run.lines)
  run.wait_for(lambda: any('/1M' in line for line in run.lines[shown:]))
  run.process.send_signal(signal.SIGUSR2)
  ended = run.end()
  assert ended.code == 75, ended.err
  assert 'SIGHUP' not in ended.out
  assert program.state(tmp_path)['update'] > 0
