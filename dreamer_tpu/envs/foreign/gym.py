"""Environments of the registry of Gymnasium, or of the old gym.

Runs in any Python from 3.8, without the rest of the project.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any


def make(
  name: str,
  kwargs: dict[str, Any],
  length: int,
  keywords: dict[str, Any],
  render_mode: str | None,
) -> Any:
  """Makes an environment.

  Args:
    name: ID, optionally with MODULE: before it.
    kwargs: Arguments of the environment.
    length: Limit of an episode in frames; 0 for the environment's own.
    keywords: Arguments for environments that accept them.
    render_mode: Mode of `render` for environments that accept it.
  """
  module, _, env_id = name.rpartition(':')
  if module:
    importlib.import_module(module)
  gym, spec = _find(env_id)
  if length:
    spec.max_episode_steps = length
  options = {**_accepted(spec, keywords), **kwargs}
  if 'disable_env_checker' in inspect.signature(gym.make).parameters:
    options['disable_env_checker'] = True
  if render_mode:
    try:
      return gym.make(env_id, **{'render_mode': render_mode, **options})
    except TypeError as error:
      if 'render_mode' not in str(error):
        raise
  return gym.make(env_id, **options)


def _find(env_id: str) -> tuple[Any, Any]:
  """Returns the package that knows an ID, and its entry there."""
  unknown: Exception | None = None
  for package in ('gymnasium', 'gym'):
    try:
      gym = importlib.import_module(package)
    except ModuleNotFoundError as error:
      if error.name != package or (package == 'gym' and not unknown):
        raise
      continue
    try:
      return gym, gym.spec(env_id)
    except gym.error.Error as error:
      unknown = error
  assert unknown
  raise unknown


def _accepted(spec: Any, keywords: dict[str, Any]) -> dict[str, Any]:
  """Returns the keywords that the entry point of an ID names."""
  entry = spec.entry_point
  if isinstance(entry, str):
    module, _, name = entry.partition(':')
    entry = getattr(importlib.import_module(module), name)
  named = inspect.signature(entry).parameters
  return {key: value for key, value in keywords.items() if key in named}
