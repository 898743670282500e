"""Small files of a step that are not arrays."""

import json
from collections.abc import Callable
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp


class TextFile:
  """One text file of a step, made and written in the background.

  Orbax calls `save` on the main thread and awaits what it returns on another
  one; the step commits after that.
  """

  def __init__(self, name: str, make: Callable[[], str], *, shared: bool):
    """States what to write.

    Args:
      name: Of the file.
      make: Its contents.
      shared: Whether it is the same on all processes.
    """
    self._name = name
    self._make = make
    self._writes = not shared or jax.process_index() == 0

  async def save(self, directory: ocp.path.PathAwaitingCreation):
    async def write():
      if self._writes:
        text = self._make()
        folder = await directory.await_creation()
        (folder / self._name).write_text(text)

    return write()

  async def load(self, directory: ocp.path.Path):
    raise NotImplementedError('The files are read directly; see layout.py.')


def replay_file(write: Callable[[], dict[str, Any]] | None) -> TextFile:
  """The manifest of this process, which `write` returns."""
  name = f'{jax.process_index()}.json'
  return TextFile(
    name, lambda: json.dumps(write() if write else {}), shared=False
  )
