"""The one error a user is meant to read."""


class UserError(Exception):
  """A mistake in the input, in one line: the thing, the value, the way out.

  `main.py` prints the message as its last line and exits with code 1, without
  a traceback.
  """
