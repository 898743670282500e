"""The directory of a run, and the configuration saved in it."""

import contextlib
import datetime
import itertools
import json
import os
import secrets
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from dreamer_tpu import paths
from dreamer_tpu.errors import UserError

# Seconds for which a host looks for a file of another one: file systems over
# the network may cache that it does not exist.
_VISIBLE_SECONDS = 5.0


def resolve(logdir: str) -> epath.Path:
  """Returns the absolute path for --logdir; creates nothing.

  Args:
    logdir: A local path or a URL such as gs://bucket/run; `share` replaces
      '{timestamp}'.
  """
  if paths.is_local(logdir):
    logdir = os.path.abspath(os.path.expanduser(logdir))
  return epath.Path(logdir)


def share(
  logdir: epath.Path, index: int, gather: Callable[[Any], list[Any]]
) -> epath.Path:
  """Creates the directory of a run and checks that all hosts share it.

  Process 0 writes a file that all others must see.

  Args:
    logdir: --logdir of this process, from `resolve`.
    index: Number of this process.
    gather: Returns the JSON values of all processes, as `HostSync.gather`.

  Returns:
    The directory; '{timestamp}' is the UTC time of process 0, as
    YYYYmmddTHHMMSS.

  Raises:
    UserError: On every process, if one has another folder or cannot write.
  """
  now = datetime.datetime.now(datetime.UTC).strftime('%Y%m%dT%H%M%S')
  now, name = gather([now, f'{secrets.token_hex(8)}.partial'])[0]
  logdir = epath.Path(str(logdir).replace('{timestamp}', now))
  file = logdir / name
  failure = '' if index else _write_failure(file)
  first, failed = gather([str(logdir), failure])[0]
  if index and not failed:
    failure = _share_failure(file, index, first)
  failures = [x for x in gather(failure) if x]
  if index == 0:
    _remove(file)
  gather(None)  # The end of another host would end process 0 before.
  if failures:
    raise UserError(failures[0])
  return logdir


def _write_failure(file: epath.Path) -> str:
  """Writes a file; returns the message if that fails."""
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(4096))  # A full disk still takes empty files.
  except OSError as error:
    return str(_not_writable(file.parent, error))
  return ''


def _share_failure(file: epath.Path, index: int, first: str) -> str:
  """Looks for a file of process 0; returns the message if it is not there."""
  deadline = time.monotonic() + _VISIBLE_SECONDS
  while not _exists(file):
    if time.monotonic() > deadline:
      logdir = str(file.parent)
      other = '' if first == logdir else f', {first}'
      return (
        f'--logdir={logdir} on host {index} is not the folder of host 0'
        f'{other}; use a path that all hosts share, such as NFS or gs://.'
      )
    time.sleep(0.2)
  own = file.with_name(f'{index}-{file.name}')
  failure = _write_failure(own)
  _remove(own)
  return failure


def _remove(file: epath.Path) -> None:
  with contextlib.suppress(OSError):
    file.unlink(missing_ok=True)


def _exists(file: epath.Path) -> bool:
  """Lists the folder, which updates what file systems have cached of it."""
  try:
    return any(path.name == file.name for path in file.parent.iterdir())
  except OSError:
    return False


def save_config(config: Any, logdir: epath.Path) -> None:
  """Writes config.json; a different earlier one is kept as config.N.json.

  Args:
    config: The merged configuration.
    logdir: Directory of the run; created if missing.

  Raises:
    UserError: The directory cannot be written.
  """
  text = json.dumps(config.to_dict(), indent=2) + '\n'
  path = logdir / 'config.json'
  names = (logdir / f'config.{number}.json' for number in itertools.count())
  try:
    logdir.mkdir(parents=True, exist_ok=True)
    if path.exists() and (earlier := path.read_text()) != text:
      unused = next(name for name in names if not name.exists())
      paths.atomic_write(unused, earlier)
    paths.atomic_write(path, text)
  except OSError as error:
    raise _not_writable(logdir, error) from error


def _not_writable(logdir: epath.Path, error: OSError) -> UserError:
  return UserError(
    f'--logdir={logdir} cannot be written '
    f'({error.strerror or error}); choose another directory.'
  )
