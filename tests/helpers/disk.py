"""Disks that become full or read-only."""

import contextlib
import os
import resource
import subprocess


def mount(*args):
  return not subprocess.run(['mount', *args], capture_output=True).returncode


class Disk:
  """A folder that can be filled and made read-only.

  If mounting is permitted (as root, who ignores permissions), it is a small
  file system; otherwise, limits and permissions stand in for it.

  Args:
    path: Path of the folder, which does not exist yet.
    size: Size of the file system.

  Attributes:
    own: Whether it is a file system of its own.
  """

  def __init__(self, path, size='4m'):
    self.path = path
    path.mkdir(parents=True)
    self.own = mount('-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(path))
    self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

  def fill(self, free=0):
    """Fills the disk but for some bytes."""
    if not self.own:
      limits = (1000, self._limits[1])
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
      return
    path = self.path / 'filler'
    with (
      contextlib.suppress(OSError),
      open(path, 'wb', 0) as file,
    ):
      while True:
        file.write(bytes(4096))
    os.truncate(path, path.stat().st_size - free)

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
