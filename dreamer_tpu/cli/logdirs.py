"""The directory of a run, and the configuration saved in it."""

import datetime
import itertools
import json
import os
from typing import Any

from etils import epath

from dreamer_tpu import paths
from dreamer_tpu.errors import UserError


def resolve(logdir: str) -> epath.Path:
  """Returns the absolute path for --logdir; creates nothing.

  Args:
    logdir: A local path or a URL such as gs://bucket/run. '{timestamp}' is
      replaced by the current UTC time as YYYYmmddTHHMMSS.
  """
  now = datetime.datetime.now(datetime.UTC)
  logdir = logdir.replace('{timestamp}', now.strftime('%Y%m%dT%H%M%S'))
  if paths.is_local(logdir):
    logdir = os.path.abspath(os.path.expanduser(logdir))
  return epath.Path(logdir)


def check_writable(logdir: epath.Path) -> None:
  """Creates the directory of a run and checks that it can be written.

  Raises:
    UserError: The directory cannot be written.
  """
  trial = logdir / f'{os.getpid()}.partial'
  try:
    logdir.mkdir(parents=True, exist_ok=True)
    trial.write_text('')
    trial.unlink()
  except OSError as error:
    raise _not_writable(logdir, error) from error


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
