"""Command lines: parsing, validation, and errors of one line."""

import importlib
import io
import json
import pathlib
import re
import resource
import subprocess
import sys

import pytest

from dreamer_tpu.cli import flags, logdirs, validate
from dreamer_tpu.config import flatten
from dreamer_tpu.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
ATARI = '--config=configs/atari.py'


def config_of(*args):
  config, rest = flags.parse_config(args)
  assert rest == []
  return config


def message(*args):
  with pytest.raises(UserError) as error:
    flags.parse(['main.py', '--logdir=unused', *args])
  text = str(error.value)
  assert '\n' not in text
  return text


def children_seconds():
  """Returns the CPU time of ended children: other programs do not add to it."""
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


def main(*args):
  """Runs main.py; returns exit code, CPU seconds, stdout, lines of stderr."""
  before = children_seconds()
  done = subprocess.run(
    [sys.executable, '-X', 'importtime', ROOT / 'main.py', *args],
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  seconds = children_seconds() - before
  return done.returncode, seconds, done.stdout, done.stderr.splitlines()


@pytest.mark.parametrize(
  ('text', 'number'),
  [('7e5', 700_000), ('700000', 700_000), ('1_000', 1000), ('0', 0)],
)
def test_integers(text, number):
  steps = config_of(f'--config.run.steps={text}').run.steps
  assert steps == number
  assert type(steps) is int


def test_an_environment_may_close_stdout(monkeypatch):
  closed = io.StringIO()
  closed.close()
  monkeypatch.setattr(sys, 'stdout', closed)
  flags._flush()


def test_large_integers_are_exact():
  written = '9007199254740993'
  steps = config_of(f'--config.run.steps={written}').run.steps
  assert steps == int(written)


def test_an_integer_is_a_number():
  ratio = config_of('--config.run.train_ratio=8').run.train_ratio
  assert ratio == 8.0
  assert type(ratio) is float


@pytest.mark.parametrize(
  'text', ['log,jsonl', "('log','jsonl')", '["log", "jsonl"]', '(log, jsonl)']
)
def test_tuples(text):
  config = config_of(f'--config.metrics.outputs={text}')
  assert config.metrics.outputs == ('log', 'jsonl')


def test_keys_named_like_methods():
  encoder = config_of('--config.agent.encoder.keys=image|a,b').agent.encoder
  assert encoder['keys'] == 'image|a,b'


def test_tuples_of_one_and_of_numbers():
  assert config_of('--config.metrics.outputs=log').metrics.outputs == ('log',)
  size = config_of(ATARI, '--config.env.atari.size=64,80').env.atari.size
  assert size == (64, 80)


@pytest.mark.parametrize(
  ('args', 'value'),
  [
    (['--config.replay.online=false'], False),
    (['--config.replay.online=True'], True),
    (['--noconfig.replay.online'], False),
    (['--config.replay.online'], True),
    (['--config.replay.online', '0'], False),
    (['--config.replay.online=0', '--config.replay.online=1'], True),
  ],
)
def test_bools(args, value):
  assert config_of(*args).replay.online is value


def test_order_and_spelling_of_flags_do_not_matter():
  one = config_of('--config.seed=3', '--config=configs/crafter.py:size1m,debug')
  two = config_of(
    '--config', 'configs/crafter.py:size1m,debug', '-config.seed', '3'
  )
  assert one == two
  assert one.seed == 3
  assert one.task == 'crafter_reward'


def test_the_last_of_repeated_flags_counts():
  config = config_of(
    '--config.metrics.outputs=log',
    '--config.metrics.outputs=jsonl',
    '--config.seed=1',
    '--config.seed=2',
  )
  assert config.metrics.outputs == ('jsonl',)
  assert config.seed == 2


def test_config_files_of_users(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from configs import gym\n'
    'def get_config(presets=""):\n'
    '  config = gym.get_config(presets)\n'
    '  config.task = "gym_Pendulum-v1"\n'
    '  return config\n'
  )
  config = config_of(f'--config={path}:debug', '--config.batch_size=2')
  assert (config.task, config.batch_size) == ('gym_Pendulum-v1', 2)


@pytest.mark.parametrize('suite', ['crafter', 'configs/crafter.py'])
def test_suites_by_name_beside_a_configs_folder_of_the_user(
  tmp_path, monkeypatch, suite
):
  (tmp_path / 'configs').mkdir()
  for name in ('__init__', 'base', 'presets', 'gym'):
    (tmp_path / 'configs' / f'{name}.py').write_text('raise RuntimeError\n')
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  for name in [x for x in sys.modules if x.split('.')[0] == 'configs']:
    monkeypatch.delitem(sys.modules, name)
  assert config_of(f'--config={suite}:debug').task == 'crafter_reward'
  assert config_of().task == 'gym_CartPole-v1'
  with pytest.raises(RuntimeError):
    importlib.import_module('configs')


def test_a_file_of_the_user_imports_what_is_beside_it(tmp_path, monkeypatch):
  (tmp_path / 'beside_it.py').write_text('TASK = "gym_Pendulum-v1"\n')
  (tmp_path / 'mine.py').write_text(
    'import beside_it\n'
    'def get_config(presets):\n'
    '  from configs import crafter\n'
    '  config = crafter.get_config(presets)\n'
    '  config.task = beside_it.TASK\n'
    '  return config\n'
  )
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  assert config_of('--config=mine.py:debug').task == 'gym_Pendulum-v1'


def test_other_arguments_are_left_to_tools():
  args = ['--topology=v5e:4x4', ATARI, '--json', '--config.seed=1', 'x']
  config, rest = flags.parse_config(args)
  assert config.seed == 1
  assert rest == ['--topology=v5e:4x4', '--json', 'x']


def test_flagfile(tmp_path):
  (tmp_path / 'flags').write_text(f'{ATARI}:debug\n--config.seed=5\n')
  config = config_of(
    f'--flagfile={tmp_path / "flags"}', '--config.batch_size=2'
  )
  assert (config.task, config.seed, config.batch_size) == ('atari_pong', 5, 2)


def test_configuration_is_locked():
  with pytest.raises((KeyError, AttributeError)):
    config_of().bathc_size = 3


@pytest.mark.parametrize(
  ('args', 'parts'),
  [
    (['--config=configs/atri.py'], ['atri.py', "'atari'", 'gym']),
    (['--config=README.md'], ['README.md', 'no suite or file', 'gym']),
    (['--config=configs/base.py'], ['configs/base.py', 'get_config']),
    ([f'{ATARI}:size40m'], ['size40m', "'size400m'"]),
    (['--config.run.step=1'], ['--config.run.step', '--config.run.steps?']),
    (['--config.lr=1e-3'], ['--config.agent.opt.lr?']),
    (['--config.batchsize=4'], ['--config.batch_size?']),
    (['--config.env.gym.options=4'], ['keys in env.gym: ', 'env.gym.size']),
    (['--config.zzzqqq=4'], ['--config.zzzqqq; --help lists all keys']),
    (['--config.run=4'], ['group', '--config.run.']),
    (['--config.batch_size=lots'], ['batch_size', "'lots'", 'an integer']),
    (['--config.run.steps=1.5'], ['run.steps', "'1.5'", 'an integer']),
    (['--config.run.steps=inf'], ['run.steps', "'inf'", 'an integer']),
    (['--config.run.steps='], ['run.steps', "''", 'an integer']),
    (['--config.run.log_every=often'], ['log_every', "'often'", 'a number']),
    (['--config.replay.online=maybe'], ['online', "'maybe'", 'true or false']),
    (['--config.env.atari.size=a,b'], ['size', "'a,b'", 'an integer']),
    (['--config.seed'], ['--config.seed', 'needs a value']),
    (['--config'], ['--config', 'needs a value']),
    (['--run.steps=1'], ['--run.steps', '--config.run.steps?']),
    (['--logdri=x'], ['--logdri', '--logdir?']),
    (['--logdir='], ['--logdir is missing']),
    (['extra'], ["'extra'"]),
  ],
)
def test_mistakes_are_one_line_with_the_way_out(args, parts):
  text = message(*args)
  for part in parts:
    assert part in text


@pytest.mark.parametrize(
  ('arg', 'parts'),
  [
    ('batch_size=0', ['batch_size=0', 'at least 1']),
    ('run.train_ratio=-1', ['run.train_ratio=-1', 'at least 0']),
    ('run.train_ratio=inf', ['run.train_ratio=inf', 'finite']),
    ('run.train_ratio=nan', ['run.train_ratio=nan', 'finite']),
    ('run.log_every=nan', ['run.log_every=nan', 'finite']),
    ('replay.prio.initial=nan', ['replay.prio.initial=nan', 'finite']),
    ('replay.fracs.priority=0.5', ["'priority': 0.5", 'add up to 1.5']),
    ('replay.fracs.recency=-1', ['replay.fracs.recency=-1', 'from 0 to 1']),
    ('agent.lam=1.5', ['agent.lam=1.5', 'from 0 to 1']),
    ('script=trian', ["'trian'", 'train']),
    ('policy.eval_mode=best', ["'best'", 'mode, random, sample']),
    ('policy.mode=ranodm', ["'ranodm'", "'random'"]),
    ('run.updates=-1', ['run.updates=-1', 'at least 0']),
    ('script=eval_only', ['run.from_checkpoint=DIR']),
    ('task=atary_pong', ["'atary_pong'", "'atari_pong'"]),
    ('task=atari', ["'atari'", 'atari_pong']),
    ('dtype.compute=float16', ["'float16'", 'bfloat16']),
    ('metrics.outputs=log,json', ["'json'", "'jsonl'"]),
    ('env.stepping=threads', ["'threads'", 'auto, serial, workers']),
    ('env.atari.actions=some', ["'some'", 'all, minimal']),
    ('env.atari.pool=3', ['env.atari.pool', "'3'", '1, 2']),
    ('env.atari.size=90,96', ['(90, 96)', '(96, 96)', '16']),
    ('env.atari.size=32,32', ['(32, 32)', '(48, 48)']),
    ('env.atari.size=64', ['(64,)', '(64, 64)']),
    ('agent.rssm.deter=8190', ['agent.rssm.deter=8190', 'blocks=8']),
    ('agent.decoder.blocks=7', ['agent.decoder.blocks=7']),
    ('agent.value.bins=254', ['agent.value.bins=254', 'odd']),
    ('agent.opt.schedule=linear', ['decay_steps=0', 'warmup=1000']),
    ('run.profile=100', ["'100'", "'100:120'"]),
    ('run.profile=7:7', ["'7:7'", "'100:120'"]),
    ('mesh.model=0', ['mesh.model=0', '-1']),
    ('mesh.data=-2', ['mesh.data=-2', 'at least -1']),
    ('mesh.model=-1', ['only one']),
    ('agent.retnorm.high=101', ['agent.retnorm.high=101', '100']),
    ('run.from_checkpoint_regex=(', ["'('", 'regular expression']),
    ('agent.encoder.keys=*', ["encoder.keys='*'", 'regular expression']),
  ],
)
def test_impossible_values(arg, parts):
  text = message(ATARI, f'--config.{arg}')
  for part in parts:
    assert part in text


def test_replay_must_hold_a_batch_and_the_starts_of_the_first():
  # 16 sequences of 65 steps are 1,040; 16 x 64 starts behind the last 64
  # steps of each of 4 environments are 1,280.
  sizes = ['batch_size=16', 'batch_length=64', 'run.envs=4']
  sizes = [f'--config.{size}' for size in sizes]
  config_of(*sizes, '--config.replay.size=1280')
  assert '1280' in message(*sizes, '--config.replay.size=1279')
  config_of(*sizes, '--config.replay.size=1088', '--config.run.envs=1')
  text = message(*sizes, '--config.replay.size=1e3', '--config.consec_train=2')
  assert 'replay.size=1000' in text
  assert '129 steps' in text


def test_dmc_needs_an_observation():
  args = ['--config=configs/dmc_vision.py', '--config.env.dmc.image=false']
  assert 'env.dmc.proprio' in message(*args)


def test_every_checked_key_exists():
  defaults = flatten(config_of())
  assert validate.CHOICES.keys() <= defaults.keys()
  assert set(validate.REGEXES) <= defaults.keys()
  numbers = {
    key
    for key, value in defaults.items()
    if isinstance(value, int | float) and not isinstance(value, bool)
  }
  assert set(validate.RANGES) == {*map(validate.pattern_of, numbers)} - {''}


def test_timestamp(tmp_path):
  path = logdirs.resolve(str(tmp_path / 'runs' / '{timestamp}-{timestamp}'))
  path = logdirs.share(path, 0, lambda value: [value])
  assert list(path.parent.iterdir()) == [path]
  assert list(path.iterdir()) == []
  stamps = re.fullmatch(r'/.*/runs/(\d{8}T\d{6})-(\d{8}T\d{6})', str(path))
  assert stamps
  assert stamps[1] == stamps[2]


def test_remote_logdirs_keep_their_address():
  path = logdirs.resolve('gs://bucket/run')
  assert str(path) == 'gs://bucket/run'


def test_saved_configuration(tmp_path):
  logdir = logdirs.resolve(str(tmp_path / 'a' / 'b'))
  for seed in (1, 1, 2, 2, 3):
    logdirs.save_config(config_of(f'--config.seed={seed}'), logdir)
  found = {
    path.name: json.loads(path.read_text())['seed']
    for path in (tmp_path / 'a' / 'b').iterdir()
  }
  assert found == {'config.0.json': 1, 'config.1.json': 2, 'config.json': 3}


def test_saved_configuration_is_complete(tmp_path):
  config = config_of('--config.metrics.outputs=log')
  logdirs.save_config(config, logdirs.resolve(str(tmp_path)))
  saved = json.loads((tmp_path / 'config.json').read_text())
  listed = {
    key: list(value) if isinstance(value, tuple) else value
    for key, value in flatten(config).items()
  }
  assert flatten(saved) == listed


def test_logdir_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  logdir = logdirs.resolve(str(tmp_path / 'file' / 'run'))
  with pytest.raises(UserError, match='Not a directory') as error:
    logdirs.save_config(config_of(), logdir)
  assert str(logdir) in str(error.value)


def test_main_answers_a_mistake_at_once(tmp_path):
  logdir = tmp_path / 'run'
  code, seconds, _, lines = main(f'--logdir={logdir}', '--config.batch_size=x')
  assert code == 1
  assert lines[-1].startswith('error: --config.batch_size')
  assert seconds < 5
  imported = {x.split('|')[-1].strip().split('.')[0] for x in lines}
  assert 'absl' in imported
  assert not imported & {'jax', 'tensorflow', 'gymnasium', 'orbax', 'flax'}
  assert not logdir.exists()


def test_main_names_a_logdir_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  code, seconds, _, lines = main(f'--logdir={tmp_path / "file"}')
  assert code == 1
  assert lines[-1].startswith(f'error: --logdir={tmp_path / "file"}')
  assert seconds < 5


def test_help_lists_keys_with_the_values_of_the_suite():
  code, _, out, _ = main('--help', f'{ATARI}:size12m')
  assert code == 0
  assert out.startswith('DreamerV3')
  assert '--config.task=atari_pong' in out
  assert '--config.agent.rssm.deter=2048' in out


@pytest.mark.parametrize(
  ('body', 'code', 'last'),
  [
    ('return 75', 75, ''),
    ('return 0', 0, ''),
    ("raise UserError('of two\\n  lines')", 1, 'error: of two lines'),
  ],
)
def test_exit_codes(body, code, last):
  program = (
    'from dreamer_tpu.errors import UserError\n'
    'from dreamer_tpu.cli import flags\n'
    f'def main(command):\n  {body}\n'
    'flags.run(main)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program, '--logdir=unused'],
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
    cwd=ROOT,
  )
  assert done.returncode == code
  assert (done.stderr.splitlines() or [''])[-1] == last
