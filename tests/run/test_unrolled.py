"""A run whose environments step in the program of the policy."""

import pytest

import dreamer_tpu
from tests.helpers import pods, program

pytest.importorskip('gymnax', reason='launch/test.sh installs it')


def test_a_run_with_many_steps_at_a_time(tmp_path):
  ended = program.run(
    tmp_path / 'run',
    '--config=configs/gymnax.py:debug',
    '--config.script=train_eval',
    '--config.env.unroll=8',
    '--config.run.steps=300',
    '--config.run.report_every=-1',
    '--config.run.log_every=-1',
    '--config.run.eval_length=20',
    '--config.metrics.outputs=log,jsonl',
  )
  assert ended.code == 0, ended.err
  assert 'Compiling environments and policy.' in ended.out
  # Two environments; the replay is filled by step 80.
  state = program.state(tmp_path / 'run')
  assert state['step'] == 304
  assert state['policy_steps'] == 152
  assert state['update'] == 1 + (304 - 80) // 8
  assert state['owed'] == 0
  lines = program.read(tmp_path / 'run' / 'metrics.jsonl')
  # The weights of the steps that are under way lack the updates on the last
  # ones.
  assert max(x.get('policy/staleness', 0) for x in lines) >= 1
  assert any('eval/unfinished/count' in x for x in lines)
  scores = program.read(tmp_path / 'run' / 'scores.jsonl')
  steps = [x['step'] for x in scores if x['mode'] == 'train']
  assert steps == sorted(steps)
  assert any(step % 16 for step in steps)
  policy = dreamer_tpu.load_policy(tmp_path / 'run')
  space = policy.observation_space
  _, action = policy(policy.initial(), space.sample())
  assert policy.action_space.contains(action)


def test_saves_do_not_change_a_run(tmp_path):
  scores = []
  for save_every in (0, -1):
    logdir = tmp_path / str(save_every)
    ended = program.run(
      logdir,
      '--config=configs/gymnax.py:debug',
      '--config.run.steps=1000',
      '--config.run.report_every=0',
      f'--config.run.save_every={save_every}',
      '--config.metrics.outputs=jsonl',
    )
    assert ended.code == 0, ended.err
    scores.append(program.read(logdir / 'scores.jsonl'))
  assert scores[0] == scores[1]
  assert len(scores[0]) > 20


@pytest.mark.slow
def test_two_hosts_are_killed_resume_and_evaluate(tmp_path):
  logdir = tmp_path / 'run'
  args = (
    '--config=configs/gymnax.py:debug',
    '--config.env.unroll=8',
    '--config.run.report_every=0',
    '--config.run.save_every=1',
    '--config.run.eval_length=20',
    '--config.metrics.outputs=log,jsonl',
  )
  forever = '--config.run.steps=1e7'
  with pods.start(logdir, 2, 1, *args, forever) as programs:
    programs[0].says('Compiling the train step.')
    programs[0].wait_for(lambda: program.state(logdir)['update'] > 9)
  before = program.state(logdir)
  last = f'--config.run.steps={before["step"] + 320}'
  ended = pods.run(logdir, 2, 1, *args, last)
  assert [x.code for x in ended] == [0, 0], ended
  after = program.state(logdir)
  new = after['step'] - before['step']
  # Each host takes 16 steps at a time, and consensus comes one round late.
  assert 320 <= new <= 320 + 2 * 32
  made, due = after['update'] - before['update'], before['owed'] - after['owed']
  assert made == due + new // 8
  metrics = program.read(logdir / 'metrics.jsonl')
  assert metrics[-1]['step'] == metrics[-1]['replay/steps'] == after['step']
  assert {x.name for x in (logdir / 'replay').iterdir()} == {'0000', '0001'}
  ended = pods.run(
    tmp_path / 'eval',
    2,
    1,
    *args,
    '--config.script=eval_only',
    f'--config.run.from_checkpoint={logdir}',
  )
  assert [x.code for x in ended] == [0, 0], ended
