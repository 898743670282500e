"""The installed package, away from the repository."""

import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """The wheel of a copy of the repository, built by pip."""
  folder = tmp_path_factory.mktemp('wheel')
  shutil.copytree(
    ROOT,
    folder / 'source',
    ignore=shutil.ignore_patterns(
      '.*', 'build', 'runs', '*.egg-info', '__pycache__'
    ),
  )
  python('-m', 'pip', 'wheel', '--no-deps', '-w', folder, folder / 'source')
  return next(folder.glob('*.whl'))


def python(*args, **kwargs):
  done = subprocess.run(
    [sys.executable, *args],
    capture_output=True,
    text=True,
    check=False,
    **kwargs,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_wheel_holds_the_package_and_the_suites_alone(wheel):
  with zipfile.ZipFile(wheel) as file:
    names = {name for name in file.namelist() if '.dist-info/' not in name}
    metadata = next(x for x in file.namelist() if x.endswith('/METADATA'))
    lines = file.read(metadata).decode().partition('\n\n')[0].splitlines()
  package = {
    str(path.relative_to(ROOT))
    for path in (ROOT / 'dreamer_tpu').rglob('*')
    if path.suffix in ('.py', '.csv', '.gz')
  }
  suites = {
    f'dreamer_tpu/configs/{x.name}' for x in (ROOT / 'configs').glob('*.py')
  }
  assert names == package | suites
  required = {
    line.partition(': ')[2]
    for line in lines
    if line.startswith('Requires-Dist') and ';' not in line
  }
  listed = re.findall(
    r'^[\w.-]+==[\w.]+$', (ROOT / 'requirements.txt').read_text(), re.M
  )
  assert required == {x.lower().replace('_', '-') for x in listed}


def test_command_runs_in_another_folder(wheel, tmp_path):
  site = tmp_path / 'site'
  python('-m', 'pip', 'install', '--no-deps', '--target', site, wheel)
  command = ['-P', site / 'bin' / 'dreamer_tpu']
  where = {'cwd': tmp_path, 'env': {'PYTHONPATH': str(site)}}
  (version,) = re.findall('-([0-9][^-]*)-py3', wheel.name)
  assert python(*command, '--version', **where) == f'dreamer_tpu {version}\n'
  shown = python(*command, '--help', '--config=atari:size12m', **where)
  assert shown.startswith('DreamerV3')
  assert '--config.agent.rssm.deter=2048' in shown
