"""Outputs whose failures neither end nor stall the run."""

import collections
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from absl import logging
from etils import epath

from dreamer_tpu import paths
from dreamer_tpu.errors import UserError

# Seconds between two tries of an output that fails. Each pause is twice the
# last one. Only an output that works for the longest starts over.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 600.0
# Maximum seconds that a write waits for a working output.
PATIENCE = 10.0
# Maximum seconds for the end of a working output, and of one that fails.
END, END_FAILING = 60.0, 20.0


class Target(Protocol):
  """Writes items one by one, or raises and is ready for another try."""

  def write(self, item: Any) -> None:
    """Writes an item.

    Raises:
      ValueError: The item cannot be written, whatever the state of the output.
      Exception: Any other failure.
    """

  def close(self) -> None:
    """Completes the output."""


class Output:
  """Writes items to a target in their order, in a thread of its own.

  After a failure, items are kept and the first is tried again, in pauses that
  grow. One line tells of the failure and one of its end. Methods may be called
  from any thread.

  Args:
    name: Name in messages, such as 'metrics.jsonl'.
    target: Target of the items.
    folder: Folder on the disk of the output.
    keep: Maximum bytes of items that wait. Beyond, `write` waits, or drops the
      oldest if the output fails.
    at_once: Whether `write` also waits until the item is written. It does not
      wait for an output that fails, which includes waits of `PATIENCE`.
    clock: Monotonic time in seconds.

  Attributes:
    failures: Failed tries so far.
    lost: Items dropped so far.
    error: Error of the last try, None if it worked.
  """

  def __init__(
    self,
    name: str,
    target: Target,
    folder: epath.PathLike,
    *,
    keep: int,
    at_once: bool = False,
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    self.failures = 0
    self.lost = 0
    self.error: Exception | None = None
    self._name = name
    self._target = target
    self._folder = folder
    self._keep = keep
    self._at_once = at_once
    self._clock = clock
    self._changed = threading.Condition()  # Holds a reentrant lock.
    self._queue: collections.deque[tuple[Any, int]] = collections.deque()
    self._bytes = 0
    self._writing = False  # Refers to the first item of the queue.
    self._reason = ''  # Reason of the present failure; empty if it works.
    self._unwritable = ''  # Reason of the last item that could not be written.
    self._lost_before = 0
    self._progressed = False  # Items were written since the last failure.
    self._pause = 0.0
    self._retry_at = self._worked_since = clock()
    self._ending = self._given_up = False
    self._thread = threading.Thread(target=self._run, name=name, daemon=True)
    self._thread.start()

  def write(self, item: Any, size: int) -> None:
    """Writes an item, now or once a failure is over.

    Args:
      item: Item of the target; it must not change later.
      size: Size in bytes.
    """
    with self._changed:
      self._queue.append((item, size))
      self._bytes += size
      self._changed.notify_all()
      if not self._wait(lambda: self._has_room(size), PATIENCE):
        self._tell(f'no answer in {PATIENCE:g} s', 'no longer waiting for it')
      first = int(self._writing)
      while self._bytes - size > self._keep and len(self._queue) > first + 1:
        self._drop(first)

  def wait(self, seconds: float) -> bool:
    """Waits until all items are written or a try fails.

    Args:
      seconds: Maximum time to wait.

    Returns:
      False if the time was too short.
    """
    with self._changed:
      return self._wait(lambda: not self._queue, seconds)

  def retry(self) -> None:
    """Ends the pause of a failing output."""
    with self._changed:
      self._retry_at = self._clock()
      self._changed.notify_all()

  def end(self) -> None:
    """Lets the output end. A failing one is tried while items are written."""
    with self._changed:
      self._ending = True
      self._changed.notify_all()

  def join(self, seconds: float = END) -> None:
    """Waits for the end, and tells of unwritten items.

    Args:
      seconds: Maximum time to wait, but `END_FAILING` if the output fails.
    """
    self._thread.join(min(seconds, END_FAILING) if self._reason else seconds)
    with self._changed:
      if self._thread.is_alive():
        self._begin_failure(f'no answer in {seconds:.0f} s')
        self.abandon()
      while self._queue:
        self._drop(0)
      if self._given_up:
        logging.warning(
          '%s: not completed (%s); lines lost: %d.',
          self._name,
          self._reason,
          self._losses(),
        )

  def abandon(self) -> None:
    """Ends without another try."""
    with self._changed:
      self._ending = self._given_up = True
      self._changed.notify_all()

  def _run(self) -> None:
    while entry := self._next():
      item, size = entry
      try:
        self._target.write(item)
      except Exception as error:  # Whatever it is, the run goes on.
        self._failed(error)
      else:
        self._written(size)
    try:
      self._target.close()
    except Exception as error:
      self._failed(error, final=True)

  def _next(self) -> tuple[Any, int] | None:
    """Waits for an item and the end of the pause. Returns None at the end."""
    with self._changed:
      while not self._ending:
        left = self._retry_at - self._clock()
        if self._queue and left <= 0:
          break
        self._changed.wait(left if self._queue else None)
      self._writing = bool(self._queue) and not self._given_up
      return self._queue[0] if self._writing else None

  def _written(self, size: int) -> None:
    with self._changed:
      self._writing, self._progressed, self.error = False, True, None
      if self._given_up:  # Too late; `join` has counted the item as lost.
        return
      self._queue.popleft()
      self._bytes -= size
      if self._reason and not self._queue:
        self._reason, self._worked_since = '', self._clock()
        logging.warning(
          '%s: written again; lines lost: %d.', self._name, self._losses()
        )
      self._changed.notify_all()

  def _failed(self, error: Exception, final: bool = False) -> None:
    with self._changed:
      unwritable = self._writing and isinstance(error, ValueError)
      progressed, self._progressed = self._progressed, False
      self._writing = False
      self.failures += 1
      reason = paths.describe(error, self._folder)
      if self._given_up:
        return
      if unwritable:
        self._drop(0)
        if reason != self._unwritable:
          self._unwritable = reason
          logging.warning('%s: lost a line (%s).', self._name, reason)
      elif self._ending:
        self._given_up = final or not progressed
        self._begin_failure(reason)
      else:
        self.error = error
        slowly = bool(self._reason) and progressed  # A few items at a time.
        self._pause = self._pause if slowly else self._next_pause()
        wait = FIRST_PAUSE if slowly else self._pause
        self._retry_at = self._clock() + wait
        if self.failures > 1 or not isinstance(error, UserError):
          self._tell(reason, f'trying again in {self._pause:g} s')
      self._changed.notify_all()

  def _next_pause(self) -> float:
    works = not self._reason and self._clock() - self._worked_since
    last = 0.0 if works > LONGEST_PAUSE else self._pause
    return min(max(2 * last, FIRST_PAUSE), LONGEST_PAUSE)

  def _tell(self, reason: str, measure: str) -> None:
    """Tells that the output fails, unless it was told before."""
    if self._begin_failure(reason):
      logging.warning(
        '%s cannot be written (%s); %s; lines are kept.',
        self._name,
        reason,
        measure,
      )

  def _begin_failure(self, reason: str) -> bool:
    """Returns False if the failure has begun before."""
    if self._reason:
      return False
    self._reason, self._lost_before = reason, self.lost
    return True

  def _losses(self) -> int:
    """Returns the items lost since the failure began."""
    return self.lost - self._lost_before

  def _wait(self, done: Callable[[], bool], seconds: float) -> bool:
    return self._changed.wait_for(
      lambda: bool(self._reason or self.error) or done(), seconds
    )

  def _has_room(self, size: int) -> bool:
    full = self._bytes - size > self._keep
    return not self._queue if self._at_once else not full

  def _drop(self, index: int) -> None:
    _, size = self._queue[index]
    del self._queue[index]
    self._bytes -= size
    self.lost += 1
