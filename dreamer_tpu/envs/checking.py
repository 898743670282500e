"""Gymnasium's checker of environments."""

import re
import warnings
from typing import Any

from gymnasium.utils.env_checker import check_env

_COLOR = re.compile(r'\x1b\[[\d;]*m')
_LEVEL = re.compile(r'(WARN|ERROR): ')  # In Gymnasium's warnings.
_LONGEST = 300  # Characters of a line.


def complaints(env: Any) -> list[str]:
  """Returns the complaints of Gymnasium's checker, in a line each.

  The checker warns any number of times, and ends at the first violation.

  Args:
    env: A `gymnasium.Env`; checked without its wrappers.
  """
  violations: list[str] = []
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    try:
      check_env(env.unwrapped, skip_render_check=True, skip_close_check=True)
    except AssertionError as error:
      violations = [str(error)]
    except Exception as error:
      violations = [f'{type(error).__name__}: {error}']
  warned = [_COLOR.sub('', str(warning.message)) for warning in caught]
  said = [_LEVEL.sub('', text, 1) for text in warned if _LEVEL.match(text)]
  lines = [' '.join(text.split())[:_LONGEST] for text in said + violations]
  return list(dict.fromkeys(lines))
