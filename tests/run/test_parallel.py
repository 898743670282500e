"""Acting and learning on two threads."""

import statistics

from tests.helpers import pods, program

PARALLEL = (*pods.GAME, '--config.script=parallel')


def test_the_ratio_is_kept_and_time_accounted_for(tmp_path):
  ended = program.run(
    tmp_path,
    *PARALLEL,
    '--config.run.train_ratio=32',
    '--config.run.steps=4000',
    '--config.run.log_every=3',
    '--config.policy.device=cpu',
  )
  assert ended.code == 0, ended.err
  metrics = program.read(tmp_path / 'metrics.jsonl')
  state = program.state(tmp_path)
  done, owed = state['update'], state['owed']
  # 64 sequences; the last 8 steps of both environments do not start one.
  start = 64 + 2 * 8
  assert metrics[0]['step'] >= start
  assert done + owed == 1 + (state['step'] - start) * 32 // 64
  # The actor does not run away from the learner.
  assert owed <= 1 + 3 * 2 * 32 / 64
  assert metrics[-1]['step'] == metrics[-1]['replay/steps'] >= 4000
  # The first lines compile, the last one is short.
  lines = metrics[2:-1]
  assert lines
  actor = ('acting', 'actor_wait')
  learner = (
    *('learning', 'learner_wait', 'agreeing', 'publishing'),
    *('saving', 'logging'),
  )
  for names in (actor, learner):
    shares = [
      sum(line.get(f'timer/{name}/frac', 0.0) for name in names)
      for line in lines
    ]
    assert statistics.median(shares) > 0.7
    assert max(shares) < 1.1
  for line in lines:
    assert line['perf/actor_wait'] == line.get('timer/actor_wait/frac', 0.0)


def test_an_error_of_the_actor_ends_the_run(tmp_path):
  fault = tmp_path / 'fault'
  fault.write_text('raise')
  ended = program.run(
    tmp_path / 'logdir', *PARALLEL, POD_FAULT=str(fault), JAX_PROCESS_ID='1'
  )
  assert ended.code == 1
  assert ended.err[-1].startswith('error: ')
  assert 'the game is over' in ended.err[-1]
  assert not any('Traceback' in line for line in ended.err)


def test_acting_on_a_reserved_device(tmp_path):
  ended = program.run(
    tmp_path,
    *PARALLEL,
    '--config.policy.device=reserved',
    '--config.run.steps=200',
    JAX_NUM_CPU_DEVICES='3',
  )
  assert ended.code == 0, ended.err
  assert program.state(tmp_path)['update'] > 5
