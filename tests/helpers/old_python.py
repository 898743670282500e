"""A virtual environment of an old Python, with old packages."""

import fcntl
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / '.pytest_cache' / 'old_python'
# Newer versions of setuptools cannot build this version of gym.
PACKAGES = ('numpy<1.24', 'setuptools<58', 'wheel<0.38'), ('gym==0.21.0',)


def find():
  """Returns a Python 3.8 or 3.9, or None."""
  for version in ('3.8', '3.9'):
    versions = pathlib.Path.home() / '.pyenv' / 'versions'
    paths = [*versions.glob(f'{version}.*/bin/python')]
    if path := shutil.which(f'python{version}'):
      paths.append(pathlib.Path(path))
    for each in paths:
      done = subprocess.run([each, '-c', 'import ensurepip'], check=False)
      if done.returncode == 0:
        return each
  return None


def make():
  """Returns the Python of the environment, made once; skips without one."""
  FOLDER.parent.mkdir(exist_ok=True)
  # Several workers of pytest share it.
  with FOLDER.with_suffix('.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    return _make()


def _make():
  python, done = FOLDER / 'bin' / 'python', FOLDER / 'done'
  if done.exists():
    return python
  old = find()
  if old is None:
    pytest.skip('there is no Python 3.8 or 3.9 with venv')
  commands = [[old, '-m', 'venv', '--clear', FOLDER]]
  for packages in PACKAGES:
    commands.append([python, '-m', 'pip', 'install', '-q', *packages])
  for command in commands:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if 'ConnectionError' in ended.stderr:
      pytest.skip('old packages cannot be downloaded without a network')
    assert not ended.returncode, ended.stderr
  done.touch()
  return python
