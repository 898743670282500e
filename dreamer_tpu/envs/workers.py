"""Environments in worker processes, one for each.

Workers are spawned, not forked, because JAX runs threads in the parent. Ctrl-C,
preemption and closed terminals signal the whole process group; workers ignore
these signals so that the parent can still save. They end with the parent, also
if it is killed, and their own children with them.
"""

import contextlib
import mmap
import multiprocessing
import multiprocessing.connection
import multiprocessing.reduction
import os
import pickle
import selectors
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

from dreamer_tpu.envs.foreign.client import Died
from dreamer_tpu.envs.memory import anonymous_file
from dreamer_tpu.envs.restarting import (
  OBSERVE,
  Calls,
  Environments,
  Failure,
  answer,
)
from dreamer_tpu.envs.waiting import CLOSING, Hung, Patience

_SIGNALS = (
  signal.SIGINT,
  signal.SIGTERM,
  signal.SIGHUP,
  signal.SIGUSR1,
  signal.SIGUSR2,
)
_THREADS = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')
_ALIGN = 64  # Bytes.

# Shape and dtype of the observations of one environment.
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]


class Workers(Environments):
  """Steps environments in processes of their own.

  Args:
    makers: Functions that make the environments; cloudpickle must be able to
      pickle them.
    task: Name of the task, for messages.
    restarts: Maximum number of restarts before an episode ends.
    patience: Limits the time of a step.
  """

  def __init__(
    self,
    makers: list[Callable[[], gymnasium.Env]],
    task: str,
    restarts: int,
    patience: Patience,
  ):
    self._workers: dict[int, _Worker] = {}
    self._selector = selectors.DefaultSelector()
    self._patience = patience
    self._memory: _Memory | None = None
    try:
      super().__init__(makers, task, restarts)
    except BaseException:
      self.close_extras()
      raise
    self._memory = _Memory(self._layout, self.num_envs)
    for worker in self._workers.values():
      worker.share(self._memory)

  def close_extras(self, **kwargs):
    """Ends the workers; kills those that take longer than `CLOSING`."""
    for worker in self._workers.values():
      worker.pipe.close()
    deadline = time.monotonic() + CLOSING
    for worker in self._workers.values():
      worker.process.join(max(0.0, deadline - time.monotonic()))
      worker.kill()
    self._workers.clear()
    self._selector.close()
    if self._memory:
      os.close(self._memory.descriptor)

  def _calls(self, calls: Calls) -> dict[int, Any]:
    replies: dict[int, Any] = {}
    pending = set(calls)

    def finish(i: int, reply: Any) -> None:
      pending.discard(i)
      replies[i] = reply

    def ready(seconds: float) -> bool:
      for key, _ in self._selector.select(seconds) if pending else ():
        i = key.data
        if i not in pending:
          self._selector.unregister(key.fileobj)  # It died.
          continue
        try:
          finish(i, self._workers[i].pipe.recv())
        except (EOFError, OSError):
          finish(i, self._died(i))
      return not pending

    self._start([i for i in calls if i not in self._workers])
    for i, call in calls.items():
      try:
        self._workers[i].pipe.send(call)
      except OSError:
        finish(i, self._died(i))
    starts = any(
      command in ('make', 'restart') for command, _ in calls.values()
    )
    try:
      self._patience.wait(ready, starts=starts)
    except Hung as error:
      for i in list(pending):
        self._remove(i).kill()
        finish(i, Failure.of(error, f'environment {i}'))
    return replies

  def _start(self, missing: list[int]) -> None:
    """Starts missing workers, which have no environment yet."""
    if not missing:
      return
    with _light_children():
      for i in missing:
        worker = self._workers[i] = _Worker(self._makers[i], i)
        self._selector.register(worker.pipe, selectors.EVENT_READ, i)
        if self._memory:
          worker.share(self._memory)

  def _died(self, i: int) -> Failure:
    code = self._remove(i).kill()
    return Failure(
      f'environment {i}',
      f'its process died with exit code {code}: out of memory, or a crash',
    )

  def _remove(self, i: int) -> '_Worker':
    worker = self._workers.pop(i)
    with contextlib.suppress(KeyError):  # It died between two calls.
      self._selector.unregister(worker.pipe)
    return worker

  def _observations(self, results: list[Any]) -> dict[str, np.ndarray]:
    del results  # The observations are in the shared memory.
    assert self._memory
    return {key: value.copy() for key, value in self._memory.arrays.items()}


class _Worker:
  """A process with one environment, seen from the parent."""

  def __init__(self, make: Callable[[], gymnasium.Env], index: int):
    context = multiprocessing.get_context('spawn')
    self.pipe, theirs = context.Pipe()
    self.process = context.Process(
      target=_serve,
      args=(theirs, CloudpickleWrapper(make), index),
      name=f'environment {index}',
    )
    self.process.start()
    theirs.close()

  def share(self, memory: '_Memory') -> None:
    """Lets the process write its observations into shared memory."""
    with contextlib.suppress(OSError):  # The next call notices a dead one.
      self.pipe.send(('share', (memory.layout, memory.num_envs)))
      multiprocessing.reduction.send_handle(
        self.pipe, memory.descriptor, self.process.pid
      )

  def kill(self) -> int | None:
    """Kills the process and its children; returns its exit code."""
    self.pipe.close()
    self.process.join(0.1)  # The exit code of a dead one takes a moment.
    if self.process.exitcode is None:
      self.process.kill()
      self.process.join()
    assert self.process.pid
    with contextlib.suppress(OSError):
      os.killpg(self.process.pid, signal.SIGKILL)
    return self.process.exitcode


class _Memory:
  """Observations of all environments in memory that processes share.

  The file behind it has no name, so nothing is left of it.

  Attributes:
    arrays: Observations [N, ...] by key.
  """

  def __init__(
    self, layout: Layout, num_envs: int, descriptor: int | None = None
  ):
    self.layout, self.num_envs = layout, num_envs
    starts, end = {}, 0
    for key, (shape, dtype) in layout.items():
      starts[key] = end
      size = num_envs * int(np.prod(shape)) * dtype.itemsize
      end += -(-size // _ALIGN) * _ALIGN
    if descriptor is None:
      descriptor = anonymous_file(max(end, 1))
    self.descriptor = descriptor
    buffer = mmap.mmap(self.descriptor, max(end, 1))
    self.arrays = {
      key: np.ndarray((num_envs, *shape), dtype, buffer, starts[key])
      for key, (shape, dtype) in layout.items()
    }


def _serve(pipe: Any, make: CloudpickleWrapper, index: int) -> None:
  """Runs a worker process until the parent closes the pipe."""
  for number in _SIGNALS:
    signal.signal(number, signal.SIG_IGN)
  # Signals for the parent's group must not reach the simulators, and the
  # parent kills this group when the environment hangs.
  os.setpgid(0, 0)
  threading.Thread(target=_follow_parent, daemon=True).start()
  # An environment written in JAX must not take the parent's accelerator.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  if 'jax' in sys.modules:
    sys.modules['jax'].config.update('jax_platforms', 'cpu')
  env: gymnasium.Env | None = None
  arrays: dict[str, np.ndarray] = {}
  with contextlib.suppress(EOFError, ConnectionError):
    while True:
      command, data = pipe.recv()
      if command == 'share':
        descriptor = multiprocessing.reduction.recv_handle(pipe)
        layout, num_envs = data
        arrays = _Memory(layout, num_envs, descriptor).arrays
        os.close(descriptor)
        continue
      try:
        if command in ('make', 'restart'):
          if env is not None:
            with contextlib.suppress(BaseException):
              env.close()
          env = make()
        reply = answer(env, command, data)
        if command in OBSERVE:
          for key, value in reply[0].items():
            arrays[key][index] = value
          reply = (None, *reply[1:])
      except Died as error:
        os._exit(error.code)  # The parent sees a death like any other.
      except BaseException as error:  # Its code may also exit or interrupt.
        reply = Failure.of(error, f'environment {index}')
      try:
        pipe.send(reply)
      except (pickle.PicklingError, AttributeError, TypeError) as error:
        # A space of a kind of its own; nothing was sent yet.
        pipe.send(Failure.of(error, f'environment {index}'))
  if env is not None:
    with contextlib.suppress(BaseException):
      env.close()
  os.killpg(0, signal.SIGKILL)


def _follow_parent() -> None:
  """Ends the process and its children once the parent has ended."""
  parent = multiprocessing.parent_process()
  assert parent
  parent.join()
  # An environment that closes as it should has this time.
  threading.Event().wait(1.0)
  os.killpg(0, signal.SIGKILL)


@contextlib.contextmanager
def _light_children() -> Iterator[None]:
  """Makes processes started within it small.

  They do not import the main script (and with it JAX), and use one thread for
  linear algebra, which NumPy reads while it is imported.
  """
  main = sys.modules['__main__']
  added = [name for name in _THREADS if name not in os.environ]
  os.environ.update(dict.fromkeys(added, '1'))
  sys.modules['__main__'] = types.ModuleType('__main__')
  try:
    yield
  finally:
    sys.modules['__main__'] = main
    for name in added:
      os.environ.pop(name, None)
