"""README.md: names, links, commands and snippets; its own environment."""

import fnmatch
import itertools
import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from configs.base import base
from dreamer_tpu.cli import flags
from dreamer_tpu.config import flatten

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXT = (ROOT / 'README.md').read_text()
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.S | re.M)
BLOCKS = FENCE.findall(TEXT)
PROSE = FENCE.sub('', TEXT)
CODE = [' '.join(text.split()) for text in re.findall(r'`([^`]+)`', PROSE)]


def code(kind, word):
  """Returns the block of README.md that contains a word."""
  (found,) = [block for name, block in BLOCKS if name == kind and word in block]
  return found


def commands():
  """Yields the words of each command that README shows."""
  lines = [
    line
    for kind, block in BLOCKS
    if not kind
    for line in block.replace('\\\n', ' ').splitlines()
  ]
  # Variables of loops, and a Python that README installs.
  names = {
    '$task': 'atari_pong',
    '$seed': '0',
    'old/bin/python': sys.executable,
  }
  for line in [*lines, *(text for text in CODE if text.startswith('python '))]:
    for name, value in names.items():
      line = line.replace(f'={name}', f'={value}')
    yield shlex.split(line, comments=True)


def alternatives(name):
  """Returns the names that one such as `a.{b,c}` stands for."""
  inside = re.search(r'\{([^}]*)\}', name)
  if not inside:
    return [name]
  return [
    full
    for part in inside[1].split(',')
    for full in alternatives(name.replace(inside[0], part.strip(), 1))
  ]


def described(name):
  """Returns whether README's table has a metric."""
  rows = re.findall(r'^\| `(\w+/.*?)` \|', PROSE, re.M)
  # Words in capitals stand for others.
  kinds = [re.sub(r'[A-Z]+', '*', row) for row in rows]
  names = [full for kind in kinds for full in alternatives(kind)]
  return any(fnmatch.fnmatchcase(name, full) for full in names)


def python(folder, *args):
  done = subprocess.run(
    [sys.executable, *args],
    cwd=folder,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_keys_exist():
  keys = flatten(base())
  known = {*keys, *(key.rpartition('.')[0] for key in keys)}
  groups = [key for key, value in base().items() if hasattr(value, 'items')]
  group = re.compile(
    rf'(?:{"|".join(groups)})\.(?!jsonl|pkl|py)[\w.*{{}},]+(?![\w(])'
  )
  named = re.findall(r'--config\.([\w.]*\w)', TEXT)
  named += [match[0] for match in map(group.match, CODE) if match]
  assert len(named) > 50
  wrong = [
    full
    for name in named
    for full in alternatives(name)
    if not fnmatch.filter(known, full)
  ]
  assert not wrong


def test_values_are_valid():
  options = [
    text
    for text in CODE
    if re.fullmatch(r'(--config\.[\w.]+=[^A-Z/ ]+ ?)+', text)
  ]
  assert len(options) > 10
  for text in options:
    flags.parse_config(shlex.split(text))


def test_runs_of_a_sweep_are_accepted(monkeypatch):
  monkeypatch.chdir(ROOT)
  sweep = yaml.safe_load(code('yaml', 'method: grid'))
  names, values = zip(*sweep['parameters'].items(), strict=True)
  runs = [*itertools.product(*(x['values'] for x in values))]
  assert len(runs) > 4
  for run in runs:  # As W&B's agent writes ${args}.
    args = [f'--{k}={v}' for k, v in zip(names, run, strict=True)]
    _, script, *words = sweep['command']
    where = words.index('${args}')
    config, _ = flags.parse(
      [script, *words[:where], *args, *words[where + 1 :]]
    )
    assert (config.seed, config.run.train_ratio) == run


def test_files_and_links_exist():
  anchors = {
    '#' + re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-')
    for title in re.findall(r'^#+ (.*)$', PROSE, re.M)
  }
  links = re.findall(r'\]\((?!https?:)([^)]+)\)', PROSE)
  rows = re.findall(r'^\|.*$', PROSE, re.M)
  suites = [
    f'configs/{x}' for row in rows for x in re.findall(r'`(\w+\.py)`', row)
  ]
  files = [
    x for x in CODE if re.match(r'(configs|dreamer_tpu|launch|tests)/', x)
  ]
  named = [*links, *suites, *files]
  assert len(named) > 20
  assert [
    x for x in named if x not in anchors and not any(ROOT.glob(x.rstrip('/')))
  ] == []


def test_commands_are_accepted(monkeypatch):
  monkeypatch.chdir(ROOT)
  count = 0
  for words in commands():
    line, options = ' '.join(words), [x for x in words if x.startswith('--')]
    tool = re.search(r'-m (dreamer_tpu\.tools\.\w+)', line)
    script = re.search(r'launch/\w+\.sh', line)
    if script:
      assert (ROOT / script[0]).exists(), line
    if tool:
      path = ROOT / tool[1].replace('.', '/')
      files = [path / '__main__.py', path.with_suffix('.py')]
      (source,) = [x.read_text() for x in files if x.exists()]
      flags.parse_config([x for x in options if '--config' in x])
      for option in [x for x in options if '--config' not in x]:
        assert f"'{option.split('=')[0]}'" in source, line
    elif {'main.py', 'dreamer_tpu'} & {*words} or (script and options):
      options = [
        x for x in options if not re.match('--(help|print|version)', x)
      ]
      flags.parse(['main.py', '--logdir=unused', *options])
      count += 1
  assert count > 10


@pytest.mark.parametrize(
  'block', [block for kind, block in BLOCKS if kind == 'python']
)
def test_snippets_compile(block):
  compile(block, 'README.md', 'exec')


def test_shell_blocks_parse():
  blocks = [block for kind, block in BLOCKS if not kind]
  for block in blocks:
    subprocess.run(['bash', '-n'], input=block, text=True, check=True)


def test_replay_by_itself(tmp_path, monkeypatch):
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  snippet = code('python', 'dreamer_tpu.replay')
  assert len(snippet.splitlines()) <= 21
  output = python(
    tmp_path, '-c', 'import sys; sys.modules["jax"] = None\n' + snippet
  )
  shown = re.findall(r'^print.*# (.*)$', snippet, re.M)
  assert output.splitlines() == shown
  assert list((tmp_path / 'saved' / '0000').iterdir())


def test_own_environment(tmp_path, monkeypatch):
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  environment = code('python', 'class Corridor')
  assert len(environment.splitlines()) <= 25
  (tmp_path / 'corridor.py').write_text(environment)
  words = code('', 'gym_corridor').split()[2:]
  words[0] += ':debug'
  python(tmp_path, ROOT / 'main.py', *words, '--config.run.steps=200')
  for line in (tmp_path / 'runs/corridor/metrics.jsonl').open():
    written = {*json.loads(line)} - {'step', 'frames', 'update', 'time'}
    assert not [name for name in written if not described(name)]

  loop = code('python', 'dreamer_tpu.load_policy')
  for old, new in {
    'import dreamer_tpu': 'import corridor, dreamer_tpu',
    'runs/first': 'runs/corridor',
    'CartPole-v1': 'Corridor-v0',
  }.items():
    assert old in loop
    loop = loop.replace(old, new)
  score = python(tmp_path, '-c', loop)
  assert float(score) in (0.0, 1.0)
