"""A clock that tests set."""


class Clock:
  """Returns `now`, in seconds, until a test advances it."""

  def __init__(self, now=0.0):
    self.now = now

  def __call__(self):
    return self.now

  def advance(self, seconds):
    self.now += seconds
