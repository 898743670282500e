"""Calls that may hang, with a time limit and an end when the run stops."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from dreamer_tpu.errors import Interrupted, describe

# Seconds that an environment gets to answer once the run is asked to stop.
GRACE = 5.0

# A start imports packages, and simulators load their data in it.
STARTS = 10  # Times the limit of a step.

# Seconds that environments get to close.
CLOSING = 5.0

_LOOK = 0.1  # Seconds between two looks at the clock.


class Hung(Exception):
  """An environment did not answer in time."""


class Patience:
  """Limits the time that an environment may take.

  Args:
    seconds: Limit of a step or a reset; 0 for none.
    stop: Returns whether the run was asked to stop.
    clock: Monotonic time in seconds.
  """

  def __init__(
    self,
    seconds: float,
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._seconds = seconds
    self._stop = stop
    self._clock = clock

  def wait(
    self,
    ready: Callable[[float], bool],
    *,
    starts: bool = False,
    seconds: float | None = None,
    progress: Callable[[], int] = lambda: 0,
  ) -> None:
    """Waits until `ready`.

    Args:
      ready: Waits for at most the given seconds, and returns whether all is
        there.
      starts: Whether an environment starts, which may take `STARTS` times the
        limit.
      seconds: Another limit.
      progress: A number; the limit counts from its last change.

    Raises:
      Hung: The limit is over.
      Interrupted: The run was asked to stop, `GRACE` seconds ago.
    """
    limit = self._seconds * (STARTS if starts else 1)
    limit = limit if seconds is None else seconds
    asked, begin, last = None, self._clock(), progress()
    while not ready(_LOOK):
      now, done = self._clock(), progress()
      if done != last:
        begin, last = now, done
      if self._stop():
        asked = now if asked is None else asked
        if now - asked >= GRACE:
          raise Interrupted
      if limit and now - begin >= limit:
        raise Hung(f'no answer for {limit:g} s (env.timeout)')


class Caller:
  """Makes calls in a thread, which is abandoned if one hangs.

  Args:
    patience: Limits the time of a call.
  """

  def __init__(self, patience: Patience):
    self._patience = patience
    self._calls: queue.SimpleQueue[_Call | None] | None = None

  def __call__(
    self, function: Callable[..., Any], *args: Any, **limits: Any
  ) -> Any:
    """Returns the result of a call, or raises its error.

    Args:
      function: Function to call.
      *args: Its arguments.
      **limits: Arguments of `Patience.wait`.

    Raises:
      RuntimeError: The call exits or interrupts.
      Hung: The call hangs; the next one gets another thread.
      Interrupted: See `Patience.wait`.
    """
    if self._calls is None:
      self._calls = queue.SimpleQueue()
      thread = threading.Thread(
        target=_serve, args=(self._calls,), name='environments', daemon=True
      )
      thread.start()
    call = _Call(function, args)
    self._calls.put(call)
    try:
      self._patience.wait(call.wait, **limits)
    except BaseException:
      self.close()
      raise
    if call.error and not isinstance(call.error, Exception):
      # The code of an environment may exit or interrupt; no more than it ends.
      error = RuntimeError(describe(call.error))
      raise error.with_traceback(call.error.__traceback__)
    if call.error:
      raise call.error
    return call.result

  def close(self) -> None:
    """Ends the thread after its current call."""
    if self._calls:
      self._calls.put(None)
      self._calls = None


class _Call:
  """A call, and its result or error once it is done."""

  def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]):
    self._function = function
    self._args = args
    self._done: queue.SimpleQueue[None] = (
      queue.SimpleQueue()
    )  # Faster than Event.
    self.result: Any = None
    self.error: BaseException | None = None

  def run(self) -> None:
    try:
      self.result = self._function(*self._args)
    except BaseException as error:
      self.error = error
    self._done.put(None)

  def wait(self, seconds: float) -> bool:
    """Waits for at most some seconds; returns whether the call is done."""
    try:
      self._done.get(timeout=seconds)
    except queue.Empty:
      return False
    return True


def _serve(calls: 'queue.SimpleQueue[_Call | None]') -> None:
  while call := calls.get():
    call.run()
