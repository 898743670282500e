"""Whole runs of main.py: their files, metrics and stop requests."""

import json
import signal
import time

import pytest
from etils import epath

from dreamer_tpu.cli import flags
from dreamer_tpu.envs import registry
from dreamer_tpu.errors import UserError
from dreamer_tpu.run import train
from dreamer_tpu.tools import suites
from tests.helpers import program, tensorboard

CARTPOLE = '--config=configs/gym.py:debug'
OFTEN = '--config.run.log_every=-1'
# Metrics that may differ between two runs of one seed.
TIMES = ('time', 'fps/', 'timer/', 'usage/', 'perf/', 'checkpoint/')
# A batch that takes minutes to collect, and is never trained on.
LARGE = (
  '--config.batch_size=4000',
  '--config.batch_length=32',
  '--config.replay.size=1e6',
)


def plain(lines):
  """Returns the lines without times, and none of reports."""
  return [
    {k: v for k, v in line.items() if not k.startswith(TIMES)}
    for line in lines
    if not any(key.startswith('report/') for key in line)
  ]


def check_files(logdir, steps):
  """Checks the files that every run leaves."""
  names = {path.name for path in logdir.iterdir()}
  assert {'config.json', 'metrics.jsonl', 'scores.jsonl', 'replay'} <= names
  assert [name for name in names if name.startswith('events.out.tfevents.')]
  assert not list(logdir.rglob('*.partial'))
  assert program.steps(logdir)[-1] == steps
  assert [path for path in logdir.glob('replay/*/*') if path.stat().st_size]
  metrics = program.read(logdir / 'metrics.jsonl')
  moments = [line['step'] for line in metrics]
  assert moments == sorted(moments)
  assert moments[-1] == steps
  tags = tensorboard.read(logdir).Tags()['tensors']
  assert {'train/loss/total', 'replay/items', 'fps/policy'} <= set(tags)
  return metrics, tags


@pytest.fixture(scope='module')
def twins(tmp_path_factory):
  """Two runs of one seed; the second also reports, saves and is traced."""
  one, two = (tmp_path_factory.mktemp('twin') for _ in range(2))
  args = (
    CARTPOLE,
    OFTEN,
    '--config.run.steps=300',
    '--config.policy.publish_every=3',
  )
  never = ('--config.run.save_every=0', '--config.run.report_every=0')
  always = (
    '--config.run.save_every=-1',
    '--config.run.report_every=-1',
    '--config.run.report_grads=True',
    '--config.run.profile=20:23',
  )
  # One by one: the second uses what the first has compiled.
  return (
    one,
    two,
    *(
      program.run(logdir, *args, *extra)
      for logdir, extra in ((one, never), (two, always))
    ),
  )


def test_a_run_leaves_its_files(twins):
  logdir, _, ended, _ = twins
  assert ended.code == 0, ended.err
  assert ended.err == []
  metrics, _ = check_files(logdir, 300)
  config = json.loads((logdir / 'config.json').read_text())
  assert config['run']['steps'] == 300
  assert metrics[-1]['update'] == program.state(logdir)['update'] > 20
  assert metrics[-1]['replay/steps'] == 300
  scores = program.read(logdir / 'scores.jsonl')
  # A CartPole that falls has been given a reward of 1 for every step.
  assert all(x['episode/score'] == x['episode/length'] for x in scores)
  assert 0 < sum(x['episode/length'] for x in scores) <= 300
  # The first update has to wait for 8 x 8 starts of sequences of 9 steps.
  # A save comes before it, and the first log a round of environments later.
  assert metrics[0]['replay/items'] == 64 + 2
  assert metrics[0]['step'] == 64 + 2 * 8 + 2
  assert metrics[0]['update'] == 1


def test_the_terminal_shows_progress(twins):
  lines = twins[2].out.splitlines()
  for text in ('Filling the replay', 'Compiling', 'Saving step 300', 'done'):
    assert [line for line in lines if text in line], text
  (count,) = (line for line in lines if 'parameters' in line)
  assert 'rssm' in count
  assert str(twins[0]) in lines[-1]


def test_same_seed_same_run(twins):
  one, two, first, second = twins
  assert (first.code, second.code) == (0, 0), second.err
  scores = [program.read(x / 'scores.jsonl') for x in (one, two)]
  assert scores[0] == scores[1]
  lines = [plain(program.read(x / 'metrics.jsonl')) for x in (one, two)]
  for line in lines[0] + lines[1]:
    line.pop('replay/ram_gb')  # More of it while a save is under way.
  assert lines[0] == lines[1]
  assert lines[0][-2]['train/loss/total'] > 0
  reports = program.read(two / 'metrics.jsonl')
  assert [line for line in reports if 'report/loss/total' in line]
  # Two are kept.
  assert len(program.steps(two)) == 2


def test_speed_and_what_reports_hold(twins):
  one, two, *_ = twins
  lines = program.read(one / 'metrics.jsonl')
  assert all(line['perf/compile_s'] > 0 for line in lines)
  trained = [line for line in lines if 'perf/update_ms' in line]
  assert len(trained) > 20
  assert len({line['perf/flops_per_update'] for line in trained}) == 1
  for line in trained:
    longest = max(line['timer/learning/max'], line['timer/learning/avg'])
    assert 0 < line['perf/update_ms'] <= 1000 * longest
    assert 'perf/mfu' not in line  # The peak of a CPU is unknown.
  assert len(list(two.glob('plugins/profile/*/*.xplane.pb'))) == 1
  tags = set(tensorboard.read(two).Tags()['tensors'])
  assert {'imagined/return', 'report/grad_norm/dyn'} <= tags


def test_preemption_before_the_first_update(tmp_path):
  filling = program.Program(
    tmp_path, CARTPOLE, *LARGE, '--config.run.steps=1e6'
  )
  filling.says('Filling the replay')
  filling.process.terminate()
  ended = filling.end()
  assert ended.code == 75, ended.err
  saved = program.state(tmp_path)
  assert saved['update'] == 0
  total = saved['step'] + 10
  ended = program.run(tmp_path, CARTPOLE, *LARGE, f'--config.run.steps={total}')
  assert ended.code == 0, ended.err
  last = program.read(tmp_path / 'metrics.jsonl')[-1]
  assert last['step'] == last['replay/steps'] == total


@pytest.mark.parametrize('signals', [1, 2])
def test_preemption_while_compiling(tmp_path, signals):
  run = program.Program(
    tmp_path,
    CARTPOLE,
    '--config.run.steps=1e6',
    JAX_ENABLE_COMPILATION_CACHE='false',
  )
  run.says('Compiling the train step')
  # What filled the replay is saved before.
  run.wait_for(lambda: program.steps(tmp_path)[-1] > 0)
  run.process.terminate()
  run.says('SIGTERM')
  if signals == 2:  # It does not wait for the compiler.
    time.sleep(1.2)
    run.process.terminate()
  ended = run.end()
  assert ended.code == (75 if signals == 1 else 128 + signal.SIGTERM), ended
  # One does, but not for long.
  at_once = [x for x in ended.out.splitlines() if 'stopping at once' in x]
  assert all('did not stop within 15 s' in x for x in at_once)


def test_weights_are_published_every_third_update(twins):
  lines = program.read(twins[0] / 'metrics.jsonl')
  stale = [(x['update'], x['policy/staleness']) for x in lines]
  assert len(stale) > 10
  # In this run updates come one by one, so that every third publishes.
  assert all(count == update % 3 for update, count in stale)


def test_images_become_videos(tmp_path):
  ended = program.run(
    tmp_path,
    '--config=configs/atari.py:debug',
    '--config.run.steps=120',
    '--config.run.report_every=-1',
    # A save during the run could be late on a busy machine, with a warning.
    '--config.run.save_every=0',
  )
  assert ended.code == 0, ended.err
  assert ended.err == []
  metrics, tags = check_files(tmp_path, 120)
  assert metrics[-1]['frames'] == 4 * 120
  assert 'openloop/image' in tags
  assert (tmp_path / 'videos' / 'openloop' / 'image.gif').exists()


def test_updates_without_acting(tmp_path):
  learns = ('--config.run.updates=30', '--config.run.save_every=0')
  config, _ = flags.parse_config([CARTPOLE, *learns])
  with pytest.raises(
    UserError, match='64 sequences on every host; this one has 0'
  ):
    train.main(config, epath.Path(tmp_path / 'empty'))
  random = (
    '--config.policy.mode=random',
    '--config.run.train_ratio=0',
    '--config.run.steps=1000',
  )
  ended = program.run(tmp_path, CARTPOLE, *random)
  assert ended.code == 0, ended.err
  filled = program.state(tmp_path)
  assert filled['update'] == 0
  # A random CartPole falls after some 22 steps.
  scores = program.read(tmp_path / 'scores.jsonl')
  lengths = [line['episode/length'] for line in scores]
  assert 17 < sum(lengths) / len(lengths) < 28

  newest = program.steps(tmp_path)[-1]
  more = ('--config.script=parallel', '--config.run.updates=40')
  for args, updates in ((learns, 30), ((*learns, *more), 40)):
    ended = program.run(tmp_path, CARTPOLE, *args)
    assert ended.code == 0, ended.err
    learned = program.state(tmp_path)
    assert learned['update'] == updates
    for count in ('step', 'policy_steps', 'owed'):
      assert learned[count] == filled[count]
    last = program.read(tmp_path / 'metrics.jsonl')[-1]
    assert (last['step'], last['replay/steps']) == (1000, 1000)
    # Each has checkpoints of its own.
    newest, last = program.steps(tmp_path)[-1], newest
    assert newest > last

  ended = program.run(tmp_path, CARTPOLE, '--config.run.steps=1100')
  assert ended.code == 0, ended.err
  acted = program.state(tmp_path)
  assert acted['step'] == program.steps(tmp_path)[-1] == 1100
  assert abs(acted['update'] - 40 - 100 / 8) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
  'args',
  [
    [CARTPOLE, '--config.task=gym_Pendulum-v1'],
    ['--config=configs/dmc_proprio.py:debug'],
    ['--config=configs/dmc_vision.py:debug'],
    ['--config=configs/crafter.py:debug'],
    ['--config=configs/atari.py:debug'],
    ['--config=configs/atari100k.py:debug'],
    ['--config=configs/bsuite.py:debug', '--config.task=bsuite_catch/0'],
    ['--config=configs/dm.py:debug'],
    ['--config=configs/dummy.py:debug'],
    ['--config=configs/loconav.py:debug'],
    ['--config=configs/memmaze.py:debug'],
    ['--config=configs/metaworld.py:debug'],
    ['--config=configs/myosuite.py:debug'],
    ['--config=configs/pinpad.py:debug'],
    ['--config=configs/procgen.py:debug'],
  ],
  ids=lambda args: args[-1].rpartition('=')[2],
)
def test_every_suite(tmp_path, args):
  config, _ = flags.parse_config(args)
  package = registry.suite_of(config.task.partition('_')[0]).package
  if package and not suites.version(package):
    pytest.skip(f'{package} is not installed')
  ended = program.run(tmp_path, *args)
  assert ended.code == 0, ended.err
  metrics, _ = check_files(tmp_path, 1000)
  assert metrics[-1]['update'] > 100
