"""Environments that step one after another in this process."""

import contextlib
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from dreamer_tpu.envs.restarting import (
  Calls,
  Environments,
  Failure,
  answer,
)
from dreamer_tpu.envs.waiting import CLOSING, Caller, Hung, Patience


class Serial(Environments):
  """Steps environments in one thread, which is abandoned if one hangs.

  Args:
    makers: Functions that make the environments.
    task: Name of the task, for messages.
    restarts: Maximum number of restarts before an episode ends.
    patience: Limits the time of a call of one environment.
  """

  def __init__(
    self,
    makers: list[Callable[[], gymnasium.Env]],
    task: str,
    restarts: int,
    patience: Patience,
  ):
    self._envs: list[gymnasium.Env | None] = [None] * len(makers)
    self._call = Caller(patience)
    super().__init__(makers, task, restarts)

  def close_extras(self, **kwargs):
    """Closes the environments."""
    with contextlib.suppress(Exception):
      self._call(self._drop, *range(self.num_envs), seconds=CLOSING)
    self._call.close()

  def _calls(self, calls: Calls) -> dict[int, Any]:
    replies: dict[int, Any] = {}
    starts = any(
      command in ('make', 'restart') for command, _ in calls.values()
    )
    while len(replies) < len(calls):
      made: dict[int, Any] = {}
      self._made = made  # An abandoned thread sees that this is not its own.
      rest = {i: call for i, call in calls.items() if i not in replies}
      try:
        self._call(
          self._make_calls,
          rest,
          made,
          starts=starts,
          progress=lambda made=made: len(made),
        )
        replies |= made
      except Hung as error:
        replies |= made
        stuck = next(i for i in calls if i not in replies)
        replies[stuck] = Failure.of(error, f'environment {stuck}')
        self._envs[stuck] = None  # Closing it might hang as well.
    return replies

  def _make_calls(self, calls: Calls, made: dict[int, Any]) -> None:
    """Makes calls in turn, in the thread, and adds their replies to `made`."""
    for i, (command, data) in calls.items():
      try:
        if command in ('make', 'restart'):
          self._drop(i)
          self._envs[i] = self._makers[i]()
        reply = answer(self._envs[i], command, data)
      except BaseException as error:
        reply = Failure.of(error, f'environment {i}')
      if made is not self._made:
        return
      made[i] = reply

  def _drop(self, *numbers: int) -> None:
    """Closes environments."""
    for i in numbers:
      env, self._envs[i] = self._envs[i], None
      if env is not None:
        with contextlib.suppress(BaseException):  # Its code may also exit.
          env.close()

  def _observations(self, results: list[Any]) -> dict[str, np.ndarray]:
    observations = {}
    for key, (shape, dtype) in self._layout.items():
      observations[key] = rows = np.empty((self.num_envs, *shape), dtype)
      for row, result in enumerate(results):
        rows[row] = result[0][key]
    return observations
