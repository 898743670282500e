"""Modules that a user names in a task, and modules that print."""

import contextlib
import importlib
import io
import os
import sys
from types import ModuleType


def import_module(name: str) -> ModuleType:
  """Imports a module, also one in the current folder."""
  # Python looks beside the program only.
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())
  return importlib.import_module(name)


def import_quietly(name: str) -> ModuleType:
  """Imports a module without the lines that it prints."""
  with contextlib.redirect_stdout(io.StringIO()):
    return importlib.import_module(name)
