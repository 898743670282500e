"""Turns SIGTERM and Ctrl-C into a request to save and stop."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Self

EXIT_CODE = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Process groups, wrappers and schedulers may deliver one signal twice.
_DUPLICATE_SECONDS = 1.0


class Preemption:
  """Turns SIGTERM and SIGINT into a stop request; a context manager.

  A second signal at least a second later ends the process at once, with exit
  code 128 plus its number. A thread receives them, because Python's own
  handlers wait until the main thread has finished compiling.

  Args:
    log_status: Shows a line on the terminal.

  Attributes:
    requested: Whether a signal has come.
  """

  def __init__(self, log_status: Callable[[str], None]) -> None:
    self.requested = False
    self._log_status = log_status
    self._previous: dict[int, object] = {}

  def __enter__(self) -> Self:
    self._reader, self._writer = socket.socketpair()
    self._writer.setblocking(False)
    self._descriptor = signal.set_wakeup_fd(self._writer.fileno())
    for number in SIGNALS:
      self._previous[number] = signal.signal(number, _ignore)
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *exc: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)  # type: ignore[arg-type]
    signal.set_wakeup_fd(self._descriptor)
    self._writer.close()
    self._thread.join()
    self._reader.close()

  def _listen(self) -> None:
    first = 0.0
    while number := self._reader.recv(1):
      if number[0] not in SIGNALS:
        continue
      if not self.requested:
        first, self.requested = time.monotonic(), True
        name = signal.Signals(number[0]).name
        self._log_status(
          f'{name}: saving and stopping; a second signal stops at once.'
        )
      elif time.monotonic() - first >= _DUPLICATE_SECONDS:
        os._exit(128 + number[0])


def _ignore(number: int, frame: FrameType | None) -> None:
  """Does nothing; Python only reports signals that have a handler."""
