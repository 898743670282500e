"""Errors that a user reads, with name suggestions, and an interruption."""

import difflib
import os
import re
import traceback
from collections.abc import Iterable

# Characters of an unexpected error; those of JAX may have pages.
_LONGEST = 500

_COLOR = re.compile(r'\x1b\[[\d;]*m')

_FRAMES = 5  # Of two lines each.
_PACKAGES = f'{os.sep}site-packages{os.sep}'
_PROJECT = f'{os.path.dirname(__file__)}{os.sep}'  # There too, if installed.


class UserError(Exception):
  """A mistake in the input, or the failure of an environment, in one line.

  It names the thing, the value and the way out.

  `main.py` prints the message as its last line, after the notes of the error,
  and exits with code 1, without a traceback.
  """


def own_frames(
  frames: Iterable[traceback.FrameSummary], skip: tuple[str, ...] = ()
) -> list[traceback.FrameSummary]:
  """Returns the frames of a traceback, without those of other packages.

  Args:
    frames: Traceback.
    skip: Beginnings of file names to leave out as well.
  """
  return [
    x
    for x in frames
    if (_PACKAGES not in x.filename or x.filename.startswith(_PROJECT))
    and not x.filename.startswith(('<frozen ', *skip))
  ]


def format_frames(frames: list[traceback.FrameSummary]) -> str:
  """Returns the innermost frames as at most ten lines."""
  return '\n'.join(
    f'  File "{x.filename}", line {x.lineno}, in {x.name}\n    {x.line}'
    for x in frames[-_FRAMES:]
  )


def explain(error: BaseException) -> tuple[str, str]:
  """Describes an error that ends the program.

  Returns:
    Lines that lead to it, '' if there are none, and the error in one line.
  """
  if isinstance(error, UserError):
    text = ' '.join(str(error).split())
    return '\n'.join(getattr(error, '__notes__', ())), text
  traced = traceback.extract_tb(error.__traceback__)
  return format_frames(own_frames(traced)), describe(error)


def describe(error: BaseException) -> str:
  """Returns the type and the message of an error in one line."""
  try:
    text = str(error)
  except Exception:  # Its own code fails.
    text = ''
  # Neither colors nor what a terminal cannot show.
  text = _COLOR.sub('', text[:_LONGEST])
  text = text.encode('utf-8', 'backslashreplace').decode()
  text = ' '.join(text.split())
  return f'{type(error).__name__}: {text}' if text else type(error).__name__


def prefixed(prefix: str, error: Exception) -> UserError:
  """Returns an error with a prefix before its message, and with its notes."""
  result = UserError(f'{prefix}{error}')
  for note in getattr(error, '__notes__', ()):
    result.add_note(note)
  return result


# Exit code of a run that stopped early and can be resumed.
STOPPED = 75


class Interrupted(BaseException):
  """The run was asked to stop while it waited for an environment.

  No failure: it passes what handles those.
  """


def nearest(name: str, choices: Iterable[str]) -> str:
  """Returns the choice most similar to `name`.

  Case is ignored. The last part of a dotted name counts twice, so that
  'run.step' and 'step' both find 'run.steps'.

  Args:
    name: What the user wrote.
    choices: At least one valid name.
  """
  return max(choices, key=lambda choice: sum(_similarities(name, choice)))


def did_you_mean(
  name: str, choices: Iterable[str], text: str = '; did you mean {}?'
) -> str:
  """Returns a suggestion, or '' if no choice is similar.

  Args:
    name: What the user wrote.
    choices: At least one valid name.
    text: The suggestion, with {} in place of the choice.
  """
  choice = nearest(name, choices)
  whole, last = _similarities(name, choice)
  return text.format(choice) if whole >= 0.85 or last >= 0.75 else ''


def _similarities(name: str, choice: str) -> tuple[float, float]:
  """Returns the similarity, 0 to 1, of dotted names and of their last parts."""
  one, two = name.lower(), choice.lower()
  pairs = (one, two), (one.split('.')[-1], two.split('.')[-1])
  whole, last = (difflib.SequenceMatcher(None, *x).ratio() for x in pairs)
  return whole, last
