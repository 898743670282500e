"""When to log, report and save."""

import time


class Every:
  """Due every so many seconds.

  Args:
    seconds: 0 is never, negative is with every update.
    first: Whether the first call is due whatever the time.
    update: Updates at the start.
  """

  def __init__(self, seconds: float, *, first: bool = False, update: int = 0):
    self._seconds = seconds
    self._last = -float('inf') if first else time.monotonic()
    self._update = update

  def __call__(self, update: int) -> bool:
    """Whether it is due; if so, the time starts anew.

    Args:
      update: Updates so far.
    """
    if self._seconds < 0:
      due, self._update = update > self._update, update
      return due
    if self._seconds == 0 or time.monotonic() - self._last < self._seconds:
      return False
    self._last = time.monotonic()
    return True
