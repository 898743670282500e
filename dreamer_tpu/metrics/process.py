"""An output in a process of its own, which may fail, hang or be killed."""

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from dreamer_tpu.errors import UserError

# Maximum seconds of the first call, which starts the process, and of others.
START, CALL = 300.0, 60.0
# Seconds that the process may take to exit, also after its parent was killed.
_EXIT = 10.0

_ERRORS = {error.__name__: error for error in (UserError, ValueError)}
# Sent to the whole process group; the run still has to save.
_IGNORED = 'SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2'


class Process:
  """Calls the methods of an object in another process.

  The first call starts the process, and so does the first one after a failure,
  which ends it.

  Args:
    kind: Class of the object, which has a method `close`.
    args: Arguments of the class.

  Attributes:
    args: The same; a change counts from the next start.
  """

  def __init__(self, kind: type, *args: Any) -> None:
    self.args = args
    self._kind = kind
    self._process: Any = None
    self._pipe: Connection

  def call(self, method: str, *args: Any) -> Any:
    """Calls a method and returns its result.

    Args:
      method: Name of the method.
      args: Its arguments.

    Raises:
      UserError: From the constructor.
      ValueError: From the method.
      RuntimeError: Any other failure, or no answer in time.
    """
    limit = CALL if self._process else START
    process = self._process or self._start()
    # Besides a late answer, this ends the wait of `send` for a stopped process.
    watchdog = threading.Timer(limit, process.kill)
    watchdog.daemon = True
    begin = time.monotonic()  # Before, as no kill must look too early.
    watchdog.start()
    try:
      self._pipe.send((method, args))
      error, result = self._pipe.recv()
    except (EOFError, OSError) as cause:
      late = time.monotonic() - begin >= limit
      self.kill()
      failure = f'gave no answer in {limit:g} s' if late else 'died'
      raise RuntimeError(f'its process {failure}') from cause
    finally:
      watchdog.cancel()
    if error and error != 'ValueError':
      self.kill()
    if error:
      raise _ERRORS.get(error, RuntimeError)(result)
    return result

  def close(self) -> None:
    """Calls `close`, and ends the process."""
    if self._process:
      self.call('close')
      self._pipe.close()
      self._process.join(_EXIT)
      self.kill()

  def kill(self) -> None:
    """Ends the process at once."""
    process, self._process = self._process, None
    if process:
      atexit.unregister(self.kill)
      self._pipe.close()
      process.kill()
      process.join(_EXIT)

  def _start(self) -> Any:
    context = multiprocessing.get_context('spawn')
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(
      target=_main,
      args=(theirs, self._kind, self.args),
      name=self._kind.__name__,
      daemon=True,
    )
    self._process.start()
    theirs.close()
    # Multiprocessing would send SIGTERM at exit, which the process ignores.
    atexit.register(self.kill)
    return self._process


def _main(pipe: Connection, kind: type, args: tuple[Any, ...]) -> None:
  """Runs the process until the pipe is closed.

  Replies to each (method, arguments) with ('', result), or with the name of an
  error and its message.
  """
  for name in _IGNORED:
    signal.signal(getattr(signal, name), signal.SIG_IGN)
  threading.Thread(target=_exit_with_parent, daemon=True).start()
  # Replies tell of errors; TensorFlow would log them in several lines.
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  # Outputs need no accelerator.
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  os.environ['CUDA_VISIBLE_DEVICES'] = ''
  os.environ['JAX_PLATFORMS'] = 'cpu'
  made: Any = None
  with contextlib.suppress(EOFError, ConnectionError):
    while True:
      method, values = pipe.recv()
      try:
        made = made or kind(*args)
        reply = '', getattr(made, method)(*values)
      except UserError as error:
        reply = 'UserError', str(error)
      except Exception as error:  # Raised in the training process.
        unwritable = made and isinstance(error, (ValueError, TypeError))
        name = 'ValueError' if unwritable else 'RuntimeError'
        reply = name, f'{type(error).__name__}: {error}'
      pipe.send(reply)


def _exit_with_parent() -> None:
  """Ends this process if its parent is gone and something hangs."""
  parent = multiprocessing.parent_process()
  if parent:
    parent.join()
    time.sleep(_EXIT)
    os._exit(1)
