"""Environments of dm_env that a function returns.

Runs in any Python from 3.8, without the rest of the project.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any


def make(
  name: str, kwargs: dict[str, Any], keywords: dict[str, Any], seeds: list[str]
) -> Any:
  """Makes an environment.

  Args:
    name: MODULE:FUNCTION.
    kwargs: Arguments of the function.
    keywords: Arguments for functions that accept them.
    seeds: Names of the argument for a seed.
  """
  module, _, attribute = name.partition(':')
  function = getattr(importlib.import_module(module), attribute)
  named = inspect.signature(function).parameters
  own = {key: value for key, value in keywords.items() if key in named}
  arguments = {**own, **kwargs}
  free = [key for key in seeds if key in named and key not in arguments]
  env = function(**arguments)
  return Reseeded(env, function, arguments, free[0]) if free else env


class Reseeded:
  """An environment that is made again for each seed."""

  def __init__(self, env: Any, function: Any, arguments: dict, key: str):
    self._env = env
    self._function = function
    self._arguments = arguments
    self._key = key

  def seed(self, seed: int) -> None:
    """Makes the environment again."""
    self._env.close()
    self._env = self._function(**{**self._arguments, self._key: seed})

  def observation_spec(self) -> Any:
    """Returns the observations."""
    return self._env.observation_spec()

  def action_spec(self) -> Any:
    """Returns the actions."""
    return self._env.action_spec()

  def reset(self) -> Any:
    """Starts an episode."""
    return self._env.reset()

  def step(self, action: Any) -> Any:
    """Takes a step."""
    return self._env.step(action)

  def close(self) -> None:
    """Closes the environment."""
    self._env.close()
