"""Who may import whom, and what a bare machine must be able to import."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'dreamer_tpu'
EVERYWHERE = {'config', 'errors', 'image_size', 'paths'}
ALLOWED = {
  'agent': set(),
  'replay': set(),
  'envs': set(),
  'metrics': set(),
  'sharding': {'agent'},
  'cli': set(),
  'actor': {'envs'},
  'learner': {'agent', 'sharding'},
  'hosts': {'sharding'},
  'checkpoint': {'agent', 'replay'},
}
HEAVY = ('clu', 'tensorflow', 'gymnasium', 'ml_collections')


def imports(path: pathlib.Path) -> set[str]:
  """Absolute names of everything that a file imports, at whatever depth."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      if node.level:
        raise ValueError(f'{path}: relative import')
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def rooms(path: pathlib.Path) -> set[str]:
  """The rooms of the package that a file imports from."""
  parts = [name.split('.') for name in imports(path)]
  return {p[1] for p in parts if p[0] == 'dreamer_tpu' and len(p) > 1}


def files(folder: pathlib.Path) -> list[pathlib.Path]:
  found = sorted(folder.rglob('*.py'))
  assert found
  return found


@pytest.mark.parametrize('room', ALLOWED)
def test_a_room_knows_only_those_below_it(room):
  for path in files(PACKAGE / room):
    above = rooms(path) - ALLOWED[room] - EVERYWHERE - {room}
    assert not above, path


def test_nothing_but_tools_imports_run():
  for path in files(PACKAGE):
    room = path.relative_to(PACKAGE).parts[0]
    if room not in ('run', 'tools'):
      assert 'run' not in rooms(path), path


def test_every_room_has_its_layer():
  found = {p.parent.name for p in PACKAGE.glob('*/__init__.py')}
  assert found == {*ALLOWED, 'run', 'tools'}


def test_the_package_never_imports_the_configuration_files():
  for path in files(PACKAGE):
    names = {name.split('.')[0] for name in imports(path)}
    assert 'configs' not in names, path


def test_configs_import_nothing_of_the_package():
  for path in files(ROOT / 'configs'):
    names = {name.split('.')[0] for name in imports(path)}
    assert 'dreamer_tpu' not in names, path


def test_agent_and_learner_import_on_a_bare_machine():
  modules = [
    '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for room in ('agent', 'learner', 'sharding')
    for path in files(PACKAGE / room)
    if path.name != '__init__.py'
  ]
  program = f"""
import importlib, sys
for name in {HEAVY}:
  sys.modules[name] = None
for name in {modules}:
  importlib.import_module(name)
try:
  import clu
except ImportError:
  print('blocked')
"""
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == 'blocked\n'
