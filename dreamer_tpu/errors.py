"""The error that a user reads, and name suggestions for its message."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """A mistake in the input, in one line: the thing, the value, the way out.

  `main.py` prints the message as its last line and exits with code 1, without
  a traceback.
  """


def nearest(name: str, choices: Iterable[str]) -> str:
  """Returns the choice most similar to `name`, for "did you mean".

  Case is ignored. The last part of a dotted name counts twice, so that
  'run.step' and 'step' both find 'run.steps'.

  Args:
    name: What the user wrote.
    choices: At least one valid name.
  """

  def similarity(choice: str) -> float:
    one, two = name.lower(), choice.lower()
    pairs = (one, two), (one.split('.')[-1], two.split('.')[-1])
    return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

  return max(choices, key=similarity)
