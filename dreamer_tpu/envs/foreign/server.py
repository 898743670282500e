"""Serves one environment to a process with another Python.

This file runs in any Python from 3.8 with NumPy, without the rest of the
project, as `PYTHON server.py SOCKET MEMORY`, with descriptors that it inherits.

Requests and replies are JSON values, each after its length in 4 bytes.
Observations and actions are in a file in memory that both processes map. Spaces
are JSON values as of `nested.to_json`, with the `offset` of each array in that
file. Texts are part of the JSON values.

The environment has the calls of Gymnasium, of any version of the old gym, or of
dm_env. The first request names a file; its function `make` makes it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import mmap
import os
import socket
import struct
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import numpy as np

_KINDS = ('Dict', 'Tuple', 'Box', 'Discrete', 'MultiDiscrete', 'MultiBinary')
_ALIGN = 64  # Bytes.


class Mismatch(Exception):
  """A value that does not fit what its environment says."""


def load(path: str) -> Any:
  """Returns the function `make` of a file."""
  spec = importlib.util.spec_from_file_location('environment_maker', path)
  assert spec and spec.loader, path  # noqa: PT018
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.make


class Environment:
  """An environment of any interface, with the calls of Gymnasium.

  Args:
    env: The environment; its spaces may also be JSON values.

  Attributes:
    spaces: Observation and action space as JSON values. A Discrete space of
      names, as MineRL has them, lists them as `values`; observations and
      actions are their numbers.
  """

  def __init__(self, env: Any):
    self._env = env
    self._is_dm = not hasattr(env, 'observation_space')
    if self._is_dm:
      spaces = env.observation_spec(), env.action_spec()
    else:
      spaces = env.observation_space, env.action_space
    self.spaces = describe(spaces[0]), describe(spaces[1])

  def reset(self, seed: int | None) -> tuple[Any, dict[str, Any]]:
    """Starts an episode; returns the observation and infos."""
    if self._is_dm:
      if seed is not None and hasattr(self._env, 'seed'):
        self._env.seed(seed)
      return self._observation(self._env.reset().observation), {}
    if seed is None:
      result = self._env.reset()
    elif _takes_seed(self._env):
      result = self._env.reset(seed=seed)
    else:
      if hasattr(self._env, 'seed'):
        self._env.seed(seed)
      result = self._env.reset()
    obs, info = result if self._has_infos(result) else (result, {})
    return self._observation(obs), _logs(info)

  def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    """Takes a step; returns the five values of Gymnasium."""
    action = _translate(self.spaces[1], action, lambda names, x: names[int(x)])
    result = self._env.step(action)
    if self._is_dm:
      obs, info = result.observation, {}
      reward = 0.0 if result.reward is None else result.reward
      over = result.last() and result.discount == 0
      cut = result.last() and not over
    elif len(result) == 5:
      obs, reward, over, cut, info = result
    elif len(result) == 4:
      obs, reward, done, info = result
      cut = done and (info or {}).get('TimeLimit.truncated', False)
      over = done and not cut
    else:
      raise Mismatch(f'step() returns {len(result)} values')
    return (
      self._observation(obs),
      _number('the reward', reward),
      bool(_number("'terminated'", over)),
      bool(_number("'truncated'", cut)),
      _logs(info),
    )

  def render(self) -> np.ndarray:
    """Returns a picture of the environment."""
    old = not getattr(self._env, 'render_mode', None)
    asked = {'mode': 'rgb_array'} if old and _takes_mode(self._env) else {}
    picture = np.asarray(self._env.render(**asked))
    if picture.dtype.kind not in 'biuf':
      raise NotImplementedError
    return picture

  def close(self) -> None:
    """Closes the environment."""
    if hasattr(self._env, 'close'):
      self._env.close()

  def _has_infos(self, result: Any) -> bool:
    """Returns whether `reset` returned infos, as since version 0.26 of gym."""
    if not isinstance(result, tuple) or len(result) != 2:
      return False
    is_tuple = self.spaces[0]['kind'] == 'Tuple'
    return isinstance(result[1], dict) and (
      not is_tuple or isinstance(result[0], tuple)
    )

  def _observation(self, obs: Any) -> Any:
    number = lambda names, x: names.index(str(x))
    return _translate(self.spaces[0], obs, number)


def _takes_mode(env: Any) -> bool:
  """Returns whether `render` takes a mode, as before version 0.26 of gym."""
  return 'mode' in inspect.signature(env.render).parameters


def _takes_seed(env: Any) -> bool:
  """Returns whether `reset` takes a seed, also within wrappers."""
  inner = inspect.signature(getattr(env, 'unwrapped', env).reset).parameters
  outer = inspect.signature(env.reset).parameters
  return 'seed' in inner and (
    'seed' in outer or any(x.kind is x.VAR_KEYWORD for x in outer.values())
  )


def _translate(space: dict[str, Any], value: Any, convert: Any) -> Any:
  """Returns a value with its names or their numbers converted."""
  if 'values' in space:
    return convert(space['values'], value)
  if space['kind'] == 'Dict' and isinstance(value, Mapping):
    children = dict(space['spaces'])
    return {
      key: _translate(children[key], part, convert) if key in children else part
      for key, part in value.items()
    }
  return value


def _number(name: str, value: Any) -> float:
  array = np.asarray(value)
  if array.size != 1 or array.dtype.kind not in 'biuf':
    kind, text = type(value).__name__, str(value)[:50]
    raise Mismatch(f'{name} is {kind} {text!r}; it must be one number')
  return float(array.item())


def _logs(info: Any) -> dict[str, float]:
  """Returns the log/... numbers of the infos; others stay here."""
  return {
    key: float(value)
    for key, value in (info or {}).items()
    if str(key).startswith('log/') and np.ndim(value) == 0
  }


# Spaces


def describe(space: Any) -> dict[str, Any]:
  """Returns a space of gym or Gymnasium, or a spec of dm_env, as JSON values.

  Of kinds that hold no numbers only the name remains.
  """
  if isinstance(space, dict) and 'kind' in space:
    return space
  names = [each.__name__ for each in type(space).__mro__]
  kind = next((name for name in names if name in _KINDS), '')
  if kind == 'Dict' or (not kind and isinstance(space, Mapping)):
    items = getattr(space, 'spaces', space).items()
    children = [[key, describe(child)] for key, child in items]
    return {'kind': 'Dict', 'spaces': children}
  if kind == 'Tuple' or isinstance(space, (list, tuple)):
    parts = getattr(space, 'spaces', space)
    return {'kind': 'Tuple', 'spaces': [describe(child) for child in parts]}
  if kind == 'Box':
    bounds = {'low': _shorten(space.low), 'high': _shorten(space.high)}
    return {'kind': kind, **bounds, **_array(space.shape, space.dtype)}
  if kind == 'Discrete':
    start = int(getattr(space, 'start', 0))
    result = {'kind': kind, 'n': int(space.n), 'start': start}
    if hasattr(space, 'value_map'):  # MineRL's Enum.
      result['values'] = [str(value) for value in space.values]
    return {**result, **_array((), np.int64)}
  if kind == 'MultiDiscrete':
    nvec = np.asarray(space.nvec)
    starts = np.broadcast_to(getattr(space, 'start', 0), nvec.shape)
    numbers = {'nvec': nvec.tolist(), 'start': starts.tolist()}
    return {'kind': kind, **numbers, **_array(nvec.shape, np.int64)}
  if kind == 'MultiBinary':
    return {'kind': kind, **_array(space.shape, np.int8)}
  return _describe_spec(space)


def _describe_spec(spec: Any) -> dict[str, Any]:
  """Returns an array of dm_env as JSON values."""
  given = getattr(spec, 'dtype', None)
  dtype = np.dtype(object if given is None else given)
  if dtype.kind not in 'biuf':
    return {'kind': type(spec).__name__}
  if hasattr(spec, 'num_values'):
    n = int(spec.num_values)
    return {'kind': 'Discrete', 'n': n, 'start': 0, **_array((), np.int64)}
  ends: tuple[Any, Any] = (-np.inf, np.inf)
  if dtype.kind in 'iu':
    ends = np.iinfo(dtype).min, np.iinfo(dtype).max
  elif dtype.kind == 'b':
    ends = False, True
  low, high = (
    np.broadcast_to(np.asarray(end, dtype), spec.shape)
    for end in (
      getattr(spec, 'minimum', ends[0]),
      getattr(spec, 'maximum', ends[1]),
    )
  )
  bounds = {'low': _shorten(low), 'high': _shorten(high)}
  return {'kind': 'Box', **bounds, **_array(spec.shape, dtype)}


def _array(shape: Any, dtype: Any) -> dict[str, Any]:
  return {'shape': [int(n) for n in shape], 'dtype': str(np.dtype(dtype))}


def _shorten(bound: Any) -> Any:
  """Returns a bound as JSON values; one number if all elements are the same."""
  if bound.size and (bound == bound.flat[0]).all():
    return bound.flat[0].item()
  return bound.tolist()


# Memory and messages


def lay_out(space: dict[str, Any], start: int) -> int:
  """Adds the `offset` to each array of a space; returns the end in bytes."""
  if space['kind'] in ('Dict', 'Tuple'):
    for child in space['spaces']:
      start = lay_out(child[1] if space['kind'] == 'Dict' else child, start)
    return start
  if 'dtype' not in space:
    return start
  space['offset'] = start
  size = int(np.prod(space['shape'])) * np.dtype(space['dtype']).itemsize
  return start + -(-size // _ALIGN) * _ALIGN


class Slots:
  """Place of the values of a space in memory.

  Args:
    space: Space after `lay_out`.
    memory: Buffer.
    name: Name of a value, for messages.
  """

  def __init__(self, space: dict[str, Any], memory: Any, name: str):
    self._space = space
    self._memory = memory
    self._name = name
    self._views: dict[int, np.ndarray] = {}

  def write(self, value: Any) -> list[str]:
    """Writes a value; returns its texts.

    Raises:
      Mismatch: The value does not fit the space.
    """
    texts: list[str] = []
    self._write(self._space, value, '', texts)
    return texts

  def read(self, texts: list[str]) -> Any:
    """Returns a copy of the value, with texts as of `write`."""
    return self._read(self._space, iter(texts))

  def _write(self, space: Any, value: Any, path: str, texts: list[str]) -> None:
    if space['kind'] in ('Dict', 'Tuple'):
      for key, child in _children(space):
        try:
          part = value[key]
        except (KeyError, IndexError, TypeError):
          raise Mismatch(f'{self._name} has no {path}{key}') from None
        self._write(child, part, f'{path}{key}/', texts)
    elif 'dtype' not in space:
      texts.append(value if isinstance(value, str) else '')
    else:
      view = self._view(space)
      given = np.asarray(value)
      integers = view.dtype.kind != 'f'
      name = f'{self._name} {path[:-1]!r}' if path else self._name
      if given.dtype.kind not in ('biu' if integers else 'biuf'):
        kind = 'integers' if integers else 'numbers'
        raise Mismatch(f'{name} is {given.dtype}, its space holds {kind}')
      if given.shape != view.shape and {given.shape, view.shape} != {(), (1,)}:
        shapes = f'{given.shape}, its space says {view.shape}'
        raise Mismatch(f'{name} has shape {shapes}')
      view[...] = given.reshape(view.shape)

  def _read(self, space: Any, texts: Any) -> Any:
    if space['kind'] == 'Dict':
      return {key: self._read(child, texts) for key, child in _children(space)}
    if space['kind'] == 'Tuple':
      return tuple(self._read(child, texts) for child in space['spaces'])
    if 'dtype' not in space:
      return next(texts)
    view = self._view(space)
    return int(view) if space['kind'] == 'Discrete' else view.copy()

  def _view(self, space: Any) -> np.ndarray:
    offset = space['offset']
    if offset not in self._views:
      kind = space['shape'], space['dtype']
      self._views[offset] = np.ndarray(*kind, self._memory, offset)
    return self._views[offset]


def _children(space: Any) -> Any:
  if space['kind'] == 'Dict':
    return space['spaces']
  return enumerate(space['spaces'])


def send(connection: socket.socket, value: Any, data: bytes = b'') -> None:
  """Sends JSON values, and raw bytes after them."""
  text = json.dumps(value).encode()
  connection.sendall(struct.pack('>I', len(text)) + text + data)


def receive(reader: Any) -> Any:
  """Returns the JSON values of a message.

  Args:
    reader: File of the socket.

  Raises:
    EOFError: The other side has closed the connection.
  """
  (size,) = struct.unpack('>I', receive_bytes(reader, 4))
  return json.loads(receive_bytes(reader, size).decode())


def receive_bytes(reader: Any, size: int) -> bytes:
  """Returns a number of bytes; raises EOFError if there are no more."""
  data = reader.read(size)
  if len(data) < size:
    raise EOFError
  return data


# The process


class Server:
  """Answers requests for an environment.

  Args:
    connection: Socket.
    memory: Descriptor of the file for observations and actions.
  """

  def __init__(self, connection: socket.socket, memory: int):
    self._connection = connection
    self._reader = connection.makefile('rb')
    self._memory = memory
    self._env: Environment | None = None

  def serve(self) -> None:
    """Answers until the other side closes the connection."""
    send(self._connection, {'python': sys.version.split()[0]})
    with contextlib.suppress(EOFError, OSError):
      while True:
        command, data = receive(self._reader)
        picture = b''
        try:
          reply = getattr(self, f'_{command}')(data)
          if command == 'render':
            picture = reply.tobytes()
            reply = _array(reply.shape, reply.dtype)
        except BaseException as error:  # It may also exit.
          reply = {'error': _report(error)}
        send(self._connection, reply, picture)
    if self._env:
      with contextlib.suppress(Exception):
        self._env.close()

  def _make(self, data: dict[str, Any]) -> dict[str, Any]:
    self._env = Environment(load(data['maker'])(**data['arguments']))
    obs, act = self._env.spaces
    end = lay_out(act, lay_out(obs, 0))
    os.truncate(self._memory, max(end, 1))
    memory = mmap.mmap(self._memory, 0)
    self._observed = Slots(obs, memory, 'observation')
    self._acted = Slots(act, memory, 'action')
    return {'spaces': [obs, act]}

  def _reset(self, seed: int | None) -> dict[str, Any]:
    assert self._env
    obs, info = self._env.reset(seed)
    return {'texts': self._observed.write(obs), 'values': [info]}

  def _step(self, texts: list[str]) -> dict[str, Any]:
    assert self._env
    obs, *values = self._env.step(self._acted.read(texts))
    return {'texts': self._observed.write(obs), 'values': values}

  def _render(self, data: None) -> np.ndarray:
    assert self._env
    return self._env.render()


def _report(error: BaseException) -> dict[str, Any]:
  """Returns an exception as JSON values; its kind is '' for a Mismatch."""
  frames = traceback.extract_tb(error.__traceback__)
  return {
    'kind': '' if isinstance(error, Mismatch) else type(error).__name__,
    'text': ' '.join(str(error).split()),
    'module': getattr(error, 'name', None),
    'frames': [[x.filename, x.lineno, x.name, x.line] for x in frames],
  }


def main() -> None:
  """Serves on the descriptors of the command line."""
  # The folder of this file has modules with names of others.
  del sys.path[0]
  sys.path.append(os.getcwd())
  connection, memory = map(int, sys.argv[1:])
  for descriptor in (connection, memory):
    os.set_inheritable(descriptor, False)  # To see the end of this process.
  Server(socket.socket(fileno=connection), memory).serve()


if __name__ == '__main__':
  main()
