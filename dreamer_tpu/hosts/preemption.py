"""SIGTERM and Ctrl-C ask the run to save and stop."""

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
_SAME = 1.0


class Preemption:
  """Notes the signal instead of dying from it; a context manager.

  A second signal, a second or more after the first, ends the process at once
  with 128 plus its number. A thread takes them: Python's own handlers wait
  until the main thread is back from compiling, which may take minutes.

  Args:
    say: Shows a line on the terminal.

  Attributes:
    requested: Whether a signal has come.
  """

  def __init__(self, say: Callable[[str], None]) -> None:
    self.requested = False
    self._say = say
    self._previous: dict[int, object] = {}

  def __enter__(self) -> Self:
    self._ours, self._python = socket.socketpair()
    self._python.setblocking(False)
    self._descriptor = signal.set_wakeup_fd(self._python.fileno())
    for number in SIGNALS:
      self._previous[number] = signal.signal(number, _pass)
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *exc: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)  # type: ignore[arg-type]
    signal.set_wakeup_fd(self._descriptor)
    self._python.close()
    self._thread.join()
    self._ours.close()

  def _listen(self) -> None:
    first = 0.0
    while number := self._ours.recv(1):
      if number[0] not in SIGNALS:
        continue
      if not self.requested:
        first, self.requested = time.monotonic(), True
        name = signal.Signals(number[0]).name
        self._say(f'{name}: saving and stopping; a second one ends at once.')
      elif time.monotonic() - first >= _SAME:
        os._exit(128 + number[0])


def _pass(number: int, frame: FrameType | None) -> None:
  """A handler has to be there for Python to report the signal."""
