"""Worker processes: Gymnasium's AsyncVectorEnv with prepared processes.

Workers are spawned, not forked, because JAX runs threads in the parent. Ctrl-C
and preemption signal the whole process group; workers ignore both signals so
that the parent can still save. They exit when the parent closes their pipe or
dies.
"""

import contextlib
import functools
import os
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv

from dreamer_tpu.envs import wrappers

MakeEnv = Callable[[], gymnasium.Env]

_THREADS = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')


def start(makers: list[MakeEnv], task: str) -> AsyncVectorEnv:
  """Starts one process per maker; cloudpickle must be able to pickle these."""
  parent = os.getpid()
  makers = [
    functools.partial(_make, make, task, index, parent)
    for index, make in enumerate(makers)
  ]
  try:
    with _light_children():
      return AsyncVectorEnv(makers, shared_memory=True, context='spawn')
  except (EOFError, ConnectionError) as error:
    raise RuntimeError(
      f'task {task}: a worker process died while starting'
    ) from error


def stop(env: AsyncVectorEnv, timeout: float = 5.0) -> None:
  """Ends the workers by closing their pipes; kills them after a timeout.

  Unlike `AsyncVectorEnv.close_extras`, which waits without limit for workers
  that hang and raises if one has died.
  """
  env.closed = True
  for pipe in env.parent_pipes:
    if pipe is not None:
      pipe.close()
  deadline = time.monotonic() + timeout
  for process in env.processes:
    process.join(max(0.0, deadline - time.monotonic()))
    if process.is_alive():
      process.kill()
      process.join()
  env.error_queue.close()


def dead(env: AsyncVectorEnv) -> str:
  """Returns the names of the workers that have ended, '' if there are none."""
  time.sleep(0.1)  # The exit code of a killed process takes a moment.
  return ', '.join(
    f'environment {i} (exit code {process.exitcode})'
    for i, process in enumerate(env.processes)
    if process.exitcode is not None
  )


def _make(make: MakeEnv, task: str, index: int, parent: int) -> gymnasium.Env:
  """Makes an environment; in a worker, prepares the process first."""
  if os.getpid() == parent:
    return make()  # AsyncVectorEnv reads the spaces of the first environment.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  # An environment written in JAX must not take the parent's accelerator.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  if 'jax' in sys.modules:
    sys.modules['jax'].config.update('jax_platforms', 'cpu')
  try:
    env = make()
  except Exception as error:
    env = gymnasium.Env()
    reported = wrappers.located(error, index, f'task {task}: ')
    env.observation_space = env.action_space = _Failed(reported)
  return _Worker(env)


class _Failed(gymnasium.spaces.Dict):
  """Space of an environment that could not be made; comparing it raises why.

  AsyncVectorEnv reports errors of its workers from the comparison of spaces
  on, but not those of makers.
  """

  def __init__(self, error: Exception):
    super().__init__()
    self._error = error

  def __eq__(self, other: Any) -> bool:
    raise self._error


class _Worker(gymnasium.Wrapper):
  """Exits without a traceback if the parent has closed the pipe or died."""

  def close(self):
    super().close()
    if isinstance(sys.exc_info()[1], ConnectionError):
      sys.exit()


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
