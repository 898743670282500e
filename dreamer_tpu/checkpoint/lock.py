"""Locks the folder of a run's checkpoints."""

import fcntl
import os
import socket

import jax
from absl import logging
from etils import epath

from dreamer_tpu import paths
from dreamer_tpu.errors import UserError


def lock(directory: epath.Path) -> int | None:
  """Locks a local folder for this process until its end.

  Two runs in one folder would delete each other's unfinished steps.

  Returns:
    File descriptor that holds the lock; None on other processes than the
    first and in object stores.

  Raises:
    UserError: Another process holds the lock.
  """
  if jax.process_index() or not paths.is_local(directory):
    return None
  file = os.open(directory / 'lock', os.O_RDWR | os.O_CREAT, 0o644)
  try:
    # Unlike `flock`, not inherited by forked environment workers, which may
    # outlive a killed run for a moment.
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except (BlockingIOError, PermissionError):
    holder = os.read(file, 256).decode() or 'unknown'
    os.close(file)
    raise UserError(
      f"'{directory}' is in use by another run (process {holder}); stop it or "
      'choose another logdir.'
    ) from None
  except OSError as error:
    logging.warning("No lock on '%s': %s", directory, error)
    return file
  os.ftruncate(file, 0)
  os.write(file, f'{os.getpid()} on {socket.gethostname()}'.encode())
  return file
