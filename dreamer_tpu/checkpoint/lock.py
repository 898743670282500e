"""One run per folder."""

import fcntl
import os

import jax
from absl import logging
from etils import epath

from dreamer_tpu.errors import UserError


class Lock:
  """Holds a local folder for this process until `release` or its death.

  Two runs that save into one folder would remove each other's unfinished
  steps. Only process 0 takes the lock, and none is taken on object stores.
  """

  def __init__(self, directory: epath.Path):
    """Takes the lock.

    Raises:
      UserError: Another process holds it.
    """
    self._file: int | None = None
    if jax.process_index() or '://' in str(directory):
      return
    self._file = os.open(directory / 'lock', os.O_RDWR | os.O_CREAT, 0o644)
    try:
      # POSIX record locks are not inherited by forked environment workers,
      # which may outlive a killed run for a moment.
      fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
      holder = os.read(self._file, 32).decode() or 'unknown'
      self.release()
      raise UserError(
        f"'{directory}' is in use by another run (process {holder}); stop it "
        'or choose another logdir.'
      ) from None
    except OSError as error:
      logging.warning("No lock on '%s': %s", directory, error)
      return
    os.ftruncate(self._file, 0)
    os.write(self._file, str(os.getpid()).encode())

  def release(self) -> None:
    """Lets go of the folder."""
    if self._file is not None:
      os.close(self._file)
      self._file = None
