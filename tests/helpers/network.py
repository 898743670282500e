"""Network namespaces: a host of its own address for each process of a pod."""

import contextlib
import os
import shutil
import subprocess

AVAILABLE = not os.geteuid() and bool(shutil.which('ip'))


class Network:
  """Namespaces at a hub, which is one, too; a context manager.

  Args:
    count: Number of hosts.
  """

  def __init__(self, count):
    self._hub, *self._names = (
      f'pod{os.getpid()}-{i}' for i in range(count + 1)
    )

  def __enter__(self):
    for name in (self._hub, *self._names):
      _ip('netns', 'add', name)
      _ip('-n', name, 'link', 'set', 'lo', 'up')
    _ip('-n', self._hub, 'link', 'add', 'bridge', 'type', 'bridge')
    _ip('-n', self._hub, 'link', 'set', 'bridge', 'up')
    for i, name in enumerate(self._names):
      port = f'port{i}'
      _ip('-n', self._hub, 'link', 'add', port, 'type', 'veth',
          'peer', 'name', 'net', 'netns', name)  # fmt: skip
      _ip('-n', self._hub, 'link', 'set', port, 'master', 'bridge', 'up')
      _ip('-n', name, 'addr', 'add', f'{self.address(i)}/24', 'dev', 'net')
      self.connect(i)
    return self

  def __exit__(self, *exc):
    for name in (self._hub, *self._names):
      with contextlib.suppress(subprocess.CalledProcessError):
        _ip('netns', 'del', name)

  def address(self, host):
    """Returns the address of a host."""
    return f'10.77.0.{host + 1}'

  def prefix(self, host):
    """Returns a command that runs another one as a host."""
    script = f'hostname {self.address(host)} && exec "$0" "$@"'
    name = self._names[host]
    return ['ip', 'netns', 'exec', name, 'unshare', '--uts', 'sh', '-c', script]

  def connect(self, host, up=True):
    """Connects a host to the others, or cuts its link."""
    state = 'up' if up else 'down'
    _ip('-n', self._names[host], 'link', 'set', 'net', state)


def _ip(*args):
  subprocess.run(['ip', *args], check=True)
