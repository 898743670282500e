"""Turns signals into requests to save, or to save and stop."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Self

from dreamer_tpu.errors import STOPPED

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
SAVE_SIGNAL = signal.SIGUSR1

# Process groups, wrappers and schedulers may deliver one signal twice.
_DUPLICATE_SECONDS = 1.0


class Preemption:
  """Turns signals into requests; a context manager around the whole program.

  SIGTERM, SIGINT, SIGHUP and SIGUSR2 request to save and stop. A second one at
  least a second later ends the process at once, with exit code 128 plus its
  number. Under `nohup`, SIGHUP stays ignored. SIGUSR1 requests to save and go
  on. A thread receives them, because Python's own handlers wait until the main
  thread has finished compiling.

  Until `attend`, there is nothing to save, and a request ends the process. It
  also does if the run does not begin to save in time.

  Args:
    patience: Seconds that the run has for that. It cannot while it compiles.

  Attributes:
    requested: Whether the run is to save and stop.
  """

  def __init__(self, patience: float = 15.0) -> None:
    self.requested = False
    self._patience = patience
    self._save_requested = False
    self._log_status: Callable[[str], None] = _print
    self._settle: Callable[[], str] | None = None
    self._tell: Callable[[str, str], None] = lambda kind, reason: None
    self._exit: Callable[[], None] = lambda: os._exit(STOPPED)
    self._saving = 0
    self._ended = threading.Event()
    self._quitting = threading.Lock()
    self._previous: dict[int, object] = {}

  def __enter__(self) -> Self:
    self._reader, self._writer = socket.socketpair()
    self._writer.setblocking(False)
    self._descriptor = signal.set_wakeup_fd(self._writer.fileno())
    for number in (*STOP_SIGNALS, SAVE_SIGNAL):
      hangup = number == signal.SIGHUP
      if hangup and signal.getsignal(number) is signal.SIG_IGN:
        continue  # `nohup` starts a run that outlives its terminal.
      self._previous[number] = signal.signal(number, _ignore)
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *exc: object) -> None:
    self._ended.set()
    for number, handler in self._previous.items():
      signal.signal(number, handler)  # type: ignore[arg-type]
    signal.set_wakeup_fd(self._descriptor)
    self._writer.close()
    self._thread.join()
    self._reader.close()

  def attend(
    self, log_status: Callable[[str], None], settle: Callable[[], str]
  ) -> None:
    """From now on the run itself looks for requests.

    Args:
      log_status: Shows a line on the terminal.
      settle: Waits for the save in progress, on any thread; returns a
        description of what is saved.
    """
    self._log_status = log_status
    self._settle = settle

  def share(
    self, tell: Callable[[str, str], None], leave: Callable[[], None]
  ) -> None:
    """Connects the requests of several hosts.

    Args:
      tell: Tells the other hosts to 'stop' or, as this one does, to 'quit'
        without another save, and the reason.
      leave: Ends this process with `STOPPED`.
    """
    self._tell = tell
    self._exit = leave

  def request(self, reason: str, *, at_once: bool = False) -> None:
    """Requests to save and stop, once.

    Args:
      reason: Names the signal.
      at_once: Whether to end the process without another save.
    """
    first, self.requested = not self.requested, True
    if self._settle is None or at_once:
      threading.Thread(target=self._quit, args=(reason,), daemon=True).start()
    elif first:
      self._log_status(
        f'{reason}: saving and stopping; a second signal stops at once.'
      )
      threading.Thread(target=self._watch, args=(reason,), daemon=True).start()

  def take_save_request(self) -> bool:
    """Returns whether a save was requested since the last call."""
    requested, self._save_requested = self._save_requested, False
    if requested:
      self._log_status(f'{signal.Signals(SAVE_SIGNAL).name}: saving.')
    return requested

  @contextlib.contextmanager
  def saving(self) -> Iterator[None]:
    """Exempts the body, which saves, from `patience`."""
    self._saving += 1
    try:
      yield
    finally:
      self._saving -= 1

  def _listen(self) -> None:
    first = 0.0
    while number := self._reader.recv(1):
      if number[0] == SAVE_SIGNAL:
        self._save_requested = True
      if number[0] not in STOP_SIGNALS:
        continue
      if not first:
        first = time.monotonic()
        name = signal.Signals(number[0]).name
        if self._settle is not None:
          self._tell('stop', name)
        self.request(name)
      elif time.monotonic() - first >= _DUPLICATE_SECONDS:
        os._exit(128 + number[0])

  def _watch(self, reason: str) -> None:
    """Ends the process if the run does not begin to save in time."""
    deadline = time.monotonic() + self._patience
    while not self._ended.wait(0.1):
      if self._saving:
        deadline = time.monotonic() + self._patience
      elif time.monotonic() > deadline:
        self._quit(
          f'{reason}, and the run did not stop within {self._patience:g} s'
        )

  def _quit(self, reason: str) -> None:
    if not self._quitting.acquire(blocking=False):
      return
    self._tell('quit', reason)
    saved = self._settle() if self._settle else 'there is nothing new to save'
    self._log_status(f'{reason}: stopping at once; {saved}.')
    self._exit()


def _print(text: str) -> None:
  print(text, flush=True)


def _ignore(number: int, frame: FrameType | None) -> None:
  """Does nothing; Python only reports signals that have a handler."""
