"""The reference of options, against the configurations themselves."""

import json
import pathlib
import re

import pytest

from configs.base import base
from dreamer_tpu.cli import flags, reference
from dreamer_tpu.config import flatten

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUITES = sorted(
  path.name
  for path in (ROOT / 'configs').glob('*.py')
  if 'def get_config' in path.read_text()
)


@pytest.fixture(scope='module')
def entries():
  return reference.read(ROOT / 'configs' / 'base.py')


def printed(capsys, *args):
  with pytest.raises(SystemExit) as ended:
    flags.parse(['main.py', *args])
  assert ended.value.code == 0
  return capsys.readouterr().out


def groups(config, prefix=''):
  for key, value in config.items():
    if hasattr(value, 'items'):
      yield f'{prefix}{key}'
      yield from groups(value, f'{prefix}{key}.')


def test_describes_every_key_and_group_and_nothing_else(entries):
  assert set(entries) == {*flatten(base()), *groups(base())}
  for key, entry in entries.items():
    assert entry.text[:1].isupper(), key
    assert entry.text.endswith('.'), key


@pytest.mark.parametrize('suite', SUITES)
def test_suites_add_no_keys_without_a_description(entries, suite):
  assert set(flatten(flags.load(f'configs/{suite}'))) <= set(entries)


@pytest.mark.parametrize(
  ('unit', 'pattern'),
  [
    ('seconds', r'run\..*_every|.*timeout|.*silence'),
    ('steps', r'run\.steps|.*(batch|eval|report)_length|replay\.size'),
    ('updates', r'.*(publish_every|warmup|decay_steps)'),
    ('pixels', r'env\..*\.size|.*kernel'),
    ('frames', r'.*repeat'),
    ('units', r'agent\..*(units|deter|hidden)'),
  ],
)
def test_numbers_that_measure_have_units(entries, unit, pattern):
  keys = [key for key in flatten(base()) if re.fullmatch(pattern, key)]
  assert len(keys) > 1
  assert {key: entries[key].unit for key in keys} == dict.fromkeys(keys, unit)


def test_shows_value_type_and_unit_of_one_group(capsys):
  text = printed(capsys, '--config.run.envs=3', '--help=run')
  keys = [line.split('=')[0].strip() for line in text.splitlines()]
  assert {key for key in keys if key.startswith('--')} == {
    f'--config.{key}' for key in flatten(base()) if key.startswith('run.')
  }
  assert '--config.run.envs=3  (integer)\n' in text
  assert '--config.run.log_every=120.0  (number, seconds)\n' in text
  assert '(error | fresh)\n' in text


def test_shows_keys_that_a_configuration_adds(tmp_path, capsys):
  file = tmp_path / 'mine.py'
  file.write_text(
    'from configs.base import base\n'
    'def get_config(presets):\n'
    '  config = base()\n'
    '  config.env.mine = dict(level=3)\n'
    '  return config\n'
  )
  text = printed(capsys, f'--config={file}', '--help')
  assert text.rstrip().endswith('--config.env.mine.level=3  (integer)')


def test_prints_the_merged_configuration(capsys):
  args = '--config=configs/atari.py:size12m', '--config.seed=4'
  config = json.loads(printed(capsys, *args, '--print_config'))
  expected, _ = flags.parse_config(args)
  assert config == json.loads(json.dumps(expected.to_dict()))
