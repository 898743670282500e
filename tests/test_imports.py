"""Rooms import what BUILD lists; the agent imports on a bare machine."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'dreamer_tpu'
HEAVY = ('clu', 'tensorflow', 'gymnasium', 'ml_collections')
MODULE = re.compile(r'dreamer_tpu(\.\w+)+\.?')


def read_build() -> dict[str, set[str]]:
  """Reads ROOMS out of BUILD, which is valid Python too."""
  for node in ast.parse((ROOT / 'BUILD').read_text()).body:
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'ROOMS':
      rooms = ast.literal_eval(node.value)
      return {k: {dep.removeprefix(':') for dep in v} for k, v in rooms.items()}
  raise ValueError('BUILD has no ROOMS.')


ROOMS = read_build()


def imports(path: pathlib.Path) -> set[str]:
  """Returns the absolute names that a file imports, in whatever function.

  Strings that name a module, as in `import_module('dreamer_tpu.run.train')`,
  count as well.
  """
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: relative import'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
    elif isinstance(node, ast.Constant) and MODULE.fullmatch(str(node.value)):
      names.add(node.value)
  return names


def rooms(*paths: pathlib.Path) -> set[str]:
  """Returns the rooms of the package that files import from."""
  names = set().union(*map(imports, paths))
  parts = [name.split('.') for name in names]
  return {p[1] for p in parts if p[0] == 'dreamer_tpu' and len(p) > 1}


def files(folder: pathlib.Path) -> list[pathlib.Path]:
  found = sorted(folder.rglob('*.py'))
  assert found
  return found


def files_of(room: str) -> list[pathlib.Path]:
  path = PACKAGE / f'{room}.py'
  return [path] if path.exists() else files(PACKAGE / room)


@pytest.mark.parametrize('room', ROOMS)
def test_build_lists_the_imports_of_a_room(room):
  found = rooms(*files_of(room)) - {room}
  assert found == ROOMS[room], f'change the list of "{room}" in BUILD'


def test_rooms_are_in_layers():
  for i, (room, deps) in enumerate(ROOMS.items()):
    assert deps <= set(list(ROOMS)[:i]), f'"{room}" imports from above'


def test_every_folder_and_module_is_a_room():
  folders = {path.parent.name for path in PACKAGE.glob('*/__init__.py')}
  modules = {path.stem for path in PACKAGE.glob('*.py')} - {'__init__'}
  assert set(ROOMS) == folders | modules


def test_the_package_itself_imports_only_its_public_function():
  assert rooms(PACKAGE / '__init__.py') == {'policy'}


def test_the_package_never_imports_the_configuration_files():
  for path in files(PACKAGE):
    names = {name.split('.')[0] for name in imports(path)}
    assert 'configs' not in names, path


def test_configs_import_nothing_from_the_package():
  assert not rooms(*files(ROOT / 'configs'))


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
