"""Environments that are made in a Python of their own."""

import mmap
import os
import pathlib
import socket
import subprocess
import traceback
from typing import Any

import gymnasium
import numpy as np

from dreamer_tpu.envs import nested
from dreamer_tpu.envs.foreign import server
from dreamer_tpu.envs.memory import anonymous_file
from dreamer_tpu.errors import UserError

# Seconds that the other process gets to close its environment.
PATIENCE = 3.0


class Died(Exception):
  """The other process died.

  Attributes:
    code: Its exit code, that of a shell if a signal ended it.
  """

  def __init__(self, code: int):
    super().__init__(f'its process died with exit code {code}')
    self.code = code if code >= 0 else 128 - code


class Raised(Exception):
  """An exception of the environment in the other process.

  Subclasses have the name of its class.

  Attributes:
    frames: Its traceback.
  """

  def __init__(self, text: str, frames: list[Any]):
    super().__init__(text)
    self.frames = [
      traceback.FrameSummary(file, number, name, line=line)
      for file, number, name, line in frames
    ]


class Made(gymnasium.Env):
  """An environment of a maker, in this Python or in another one.

  Args:
    maker: Name of a file of this folder that has a function `make`.
    python: Python that runs it; '' for this one.
    **arguments: Arguments of the function, as JSON has them.

  Attributes:
    described: Observation and action space as of `server.describe`.

  Raises:
    UserError: Python does not start, or lacks a module.
  """

  def __init__(self, maker: str, python: str, **arguments: Any):
    path = str(pathlib.Path(__file__).with_name(f'{maker}.py'))
    self._env: Any
    if python:
      self._env = _Process(os.path.expanduser(python), path, arguments)
    else:
      self._env = server.Environment(server.load(path)(**arguments))
    self.described = self._env.spaces
    self.observation_space, self.action_space = map(
      nested.from_json, self.described
    )

  def reset(self, *, seed=None, options=None):
    """Starts an episode."""
    super().reset(seed=seed)
    try:
      return self._env.reset(seed)
    except server.Mismatch as error:
      raise UserError(str(error)) from error

  def step(self, action):
    """Takes a step."""
    try:
      return self._env.step(action)
    except server.Mismatch as error:
      raise UserError(str(error)) from error

  def render(self):
    """Returns a picture."""
    try:
      return self._env.render()
    except Raised as error:
      if type(error).__name__ == 'NotImplementedError':
        raise NotImplementedError from error
      raise

  def close(self):
    """Closes the environment, and ends its process."""
    self._env.close()


class _Process:
  """Another Python with an environment; has the calls of its Environment."""

  def __init__(self, python: str, maker: str, arguments: dict[str, Any]):
    self._python = python
    self._socket, theirs = socket.socketpair()
    self._reader = self._socket.makefile('rb')
    memory = anonymous_file(0)
    descriptors = theirs.fileno(), memory
    self._process = subprocess.Popen(
      [python, server.__file__, *map(str, descriptors)],
      stdin=subprocess.DEVNULL,
      pass_fds=descriptors,
    )
    theirs.close()
    try:
      self._await_start()
      reply = self._ask('make', {'maker': maker, 'arguments': arguments})
      buffer = mmap.mmap(memory, 0)
    except BaseException:
      self.close()
      raise
    finally:
      os.close(memory)
    self.spaces = reply['spaces']
    self._observed = server.Slots(self.spaces[0], buffer, 'observation')
    self._acted = server.Slots(self.spaces[1], buffer, 'action')

  def reset(self, seed: int | None) -> tuple[Any, dict[str, Any]]:
    return self._result('reset', seed)

  def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    return self._result('step', self._acted.write(action))

  def render(self) -> np.ndarray:
    reply = self._ask('render', None)
    shape, dtype = reply['shape'], np.dtype(reply['dtype'])
    size = int(np.prod(shape)) * dtype.itemsize
    data = server.receive_bytes(self._reader, size)
    return np.frombuffer(data, dtype).reshape(shape)

  def close(self) -> None:
    self._reader.close()
    self._socket.close()
    try:
      self._process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()

  def _await_start(self) -> None:
    try:
      server.receive(self._reader)
    except (EOFError, OSError):
      raise UserError(
        f'{self._python} ended with exit code {self._process.wait()} at its '
        'start; it must be Python 3.8 or newer, with NumPy'
      ) from None

  def _result(self, command: str, data: Any) -> Any:
    reply = self._ask(command, data)
    return (self._observed.read(reply['texts']), *reply['values'])

  def _ask(self, command: str, data: Any) -> Any:
    try:
      server.send(self._socket, [command, data])
      reply = server.receive(self._reader)
    except (EOFError, OSError):
      raise Died(self._process.wait()) from None
    if 'error' not in reply:
      return reply
    error = reply['error']
    if error['kind'] == 'ModuleNotFoundError':
      raise UserError(
        f'the Python module {error["module"]!r} is missing in {self._python}: '
        'install it there, or start in its folder'
      )
    if not error['kind']:
      raise server.Mismatch(error['text'])
    raise type(error['kind'], (Raised,), {})(error['text'], error['frames'])
