"""Disks that become full or read-only during a run.

If mounting is permitted (as root, who ignores permissions), the disk is a small
file system; otherwise, limits and permissions stand in for it.
"""

import contextlib
import resource
import subprocess

import pytest
from absl import logging

from tests.helpers.small_run import Run, contents


@pytest.fixture(autouse=True)
def verbosity():
  """Shows warnings, whatever previous tests have set."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.WARNING)
  yield
  logging.set_verbosity(before)


def mount(*args):
  return not subprocess.run(['mount', *args], capture_output=True).returncode


class Disk:
  """A folder that can be filled and made read-only."""

  def __init__(self, path):
    self.path = path
    path.mkdir()
    self.own = mount('-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(path))
    self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  def fill(self):
    if not self.own:
      limits = (1000, self._limits[1])
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
      return
    with (
      contextlib.suppress(OSError),
      open(self.path / 'filler', 'wb', 0) as file,
    ):
      while True:
        file.write(bytes(4096))

  def empty(self):
    resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
    (self.path / 'filler').unlink(missing_ok=True)

  def read_only(self, on):
    if self.own:
      path = str(self.path)
      if on:  # A mount on top, as the one below is open for writing.
        assert mount('--bind', path, path)
        assert mount('-o', 'remount,bind,ro', path)
      else:
        subprocess.run(['umount', '-l', path], check=True)
      return
    for folder in [self.path, *self.path.rglob('*')]:
      if folder.is_dir():
        folder.chmod(0o555 if on else 0o755)

  def release(self):
    self.empty()
    if self.own:
      subprocess.run(['umount', '-l', str(self.path)], check=True)
    else:
      self.read_only(False)


@pytest.fixture
def disk(tmp_path):
  disk = Disk(tmp_path / 'disk')
  yield disk
  disk.release()


def warnings(caplog):
  return [x.getMessage() for x in caplog.records if x.levelname == 'WARNING']


@pytest.mark.parametrize('fault', ['full', 'read-only'])
def test_a_save_fails_and_the_run_continues(disk, caplog, fault):
  reason = {
    'full': 'No space left|File too large',
    'read-only': 'Read-only|denied',
  }
  with Run(disk.path) as run:
    first = run.save(10)
    run.save(20)
    disk.fill() if fault == 'full' else disk.read_only(True)
    run.save(30, fails=True)
    run.save(40, fails=True)
    (line, second) = warnings(caplog)
    assert '\n' not in line
    assert line.startswith('Saving step 30 failed: ')
    assert any(x in line for x in reason[fault].split('|'))
    assert 'The run continues; the newest checkpoint is of step 20' in line
    assert 'Saving step 40' in second
    assert run.checkpointer.steps() == [10, 20]
    disk.empty() if fault == 'full' else disk.read_only(False)
    expected = run.save(50)
    assert run.checkpointer.steps() == [20, 50]
  with Run(disk.path) as run:
    assert run.restore() == 50
    assert contents(run.replay) == expected != first
