"""When to log, report and save."""


class Every:
  """Due every so many seconds of the clock that all hosts share.

  Args:
    seconds: 0 is never, negative is with every update.
    first: Whether the first call is due whatever the time.
    update: Updates at the start.
  """

  def __init__(self, seconds: float, *, first: bool = False, update: int = 0):
    self._seconds = seconds
    self._last: float | None = -float('inf') if first else None
    self._update = update

  def __call__(self, update: int, now: float) -> bool:
    """Whether it is due; if so, the time starts anew.

    Args:
      update: Updates so far.
      now: Seconds, as all hosts know it; see `agreement`.
    """
    if self._last is None:
      self._last = now
    if self._seconds < 0:
      due, self._update = update > self._update, update
      return due
    if self._seconds == 0 or now - self._last < self._seconds:
      return False
    self._last = now
    return True
