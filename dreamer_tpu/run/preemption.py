"""SIGTERM and Ctrl-C ask the run to save and stop."""

import signal
from types import FrameType
from typing import Self

EXIT_CODE = 75


class Preemption:
  """Notes the signal instead of dying from it; a context manager.

  A second signal of the same kind ends the process at once, as by default.

  Attributes:
    requested: Whether a signal has come.
  """

  def __init__(self) -> None:
    self.requested = False
    self._previous: dict[int, object] = {}

  def __enter__(self) -> Self:
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *exc: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)  # type: ignore[arg-type]

  def _note(self, number: int, frame: FrameType | None) -> None:
    self.requested = True
    signal.signal(number, signal.SIG_DFL)
