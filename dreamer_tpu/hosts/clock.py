"""Intervals of logs, reports and saves."""

# The shared clock is one call late with several hosts: the second call after an
# event is the first that knows of a time after it.
_CALLS = 2


class Interval:
  """Fires at regular intervals of a clock that all hosts share.

  An interval counts from the end of the event before it, so that an event that
  takes longer than its interval does not keep the run from anything else.

  Args:
    seconds: Time between two events; 0 disables, negative means every update.
    first: Whether to fire at the first call.
    update: Updates at the start.
  """

  def __init__(self, seconds: float, *, first: bool = False, update: int = 0):
    self._seconds = seconds
    self._last: float | None = -float('inf') if first else None
    self._update = update
    self._settling = 0  # Calls left until the end of the last event is known.

  def __call__(self, update: int, now: float) -> bool:
    """Returns whether the event is due; if so, restarts the interval.

    Args:
      update: Updates so far.
      now: Seconds on the shared clock.
    """
    if self._last is None:
      self._last = now
    if self._seconds < 0:
      due, self._update = update > self._update, update
      return due
    if self._settling:
      self._settling -= 1
      self._last = now
    if self._seconds == 0 or now - self._last < self._seconds:
      return False
    self._settling = _CALLS
    return True
