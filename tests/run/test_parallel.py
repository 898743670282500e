"""Acting and learning on two threads."""

from tests.helpers import pods, program

PARALLEL = (*pods.GAME, '--config.script=parallel')


def spent(line, name):
  """Returns the seconds in a section since the line before."""
  average = line.get(f'timer/{name}/avg', 0.0)
  return average * line.get(f'timer/{name}/count', 0)


def elapsed(line):
  """Returns the seconds since the line before."""
  return spent(line, 'agreeing') / line['timer/agreeing/frac']


def test_the_ratio_is_kept_and_time_accounted_for(tmp_path):
  ended = program.run(
    tmp_path,
    *PARALLEL,
    '--config.run.train_ratio=32',
    '--config.run.steps=4000',
    '--config.run.log_every=1',
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
    # Of all lines together: a section is in the line after its end.
    total = sum(spent(line, name) for line in lines for name in names)
    assert 0.7 < total / sum(map(elapsed, lines)) < 1.1
  assert any('perf/actor_wait' in line for line in lines)
  for line in lines:
    waited = line.get('timer/actor_wait/frac')
    assert line.get('perf/actor_wait') == waited


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
