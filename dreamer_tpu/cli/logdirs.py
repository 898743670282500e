"""The run's directory, and the configuration that is kept in it."""

import datetime
import itertools
import json
import os
from typing import Any

from etils import epath

from dreamer_tpu.errors import UserError


def resolve(logdir: str) -> epath.Path:
  """The path that --logdir means.

  Args:
    logdir: a local path or a URL such as gs://bucket/run; '{timestamp}' stands
      for the time now, in UTC, as YYYYmmddTHHMMSS.

  Returns:
    An absolute path; nothing is created.
  """
  now = datetime.datetime.now(datetime.UTC)
  logdir = logdir.replace('{timestamp}', now.strftime('%Y%m%dT%H%M%S'))
  if '://' not in logdir:
    logdir = os.path.abspath(os.path.expanduser(logdir))
  return epath.Path(logdir)


def check_writable(logdir: epath.Path) -> None:
  """Creates the directory of a run and tries to write in it.

  Raises:
    UserError: it cannot be written.
  """
  trial = logdir / f'{os.getpid()}.partial'
  try:
    logdir.mkdir(parents=True, exist_ok=True)
    trial.write_text('')
    trial.unlink()
  except OSError as error:
    raise _not_writable(logdir, error) from error


def save_config(config: Any, logdir: epath.Path) -> None:
  """Writes config.json, keeping a different one as config.N.json.

  Args:
    config: the merged configuration.
    logdir: created where missing.

  Raises:
    UserError: the directory cannot be written.
  """
  text = json.dumps(config.to_dict(), indent=2) + '\n'
  path = logdir / 'config.json'
  partial = logdir / 'config.json.partial'
  try:
    logdir.mkdir(parents=True, exist_ok=True)
    partial.write_text(text)
    if path.exists() and path.read_text() != text:
      path.rename(_unused(logdir))
    partial.replace(path)
  except OSError as error:
    raise _not_writable(logdir, error) from error


def _not_writable(logdir: epath.Path, error: OSError) -> UserError:
  return UserError(
    f'--logdir={logdir} cannot be written '
    f'({error.strerror or error}); choose another directory.'
  )


def _unused(logdir: epath.Path) -> epath.Path:
  paths = (logdir / f'config.{number}.json' for number in itertools.count())
  return next(path for path in paths if not path.exists())
