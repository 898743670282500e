"""Worker processes: one environment each, observations in shared memory.

Workers are started with `spawn`, never by forking: JAX runs threads in the
parent. They ignore SIGINT and SIGTERM, which reach the whole process group on
Ctrl-C and preemption, because the parent still has to save; they end when the
parent closes their pipe or dies.
"""

import contextlib
import os
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
from gymnasium.vector import AsyncVectorEnv
from gymnasium.vector.utils import write_to_shared_memory

from dreamer_tpu.errors import UserError

THREADS = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')


def start(
  makers: list[Callable[[], gymnasium.Env]],
) -> AsyncVectorEnv:
  """One worker process per maker; makers are picklable by cloudpickle."""
  try:
    with _light_start():
      return AsyncVectorEnv(
        makers, shared_memory=True, context='spawn', worker=work
      )
  except (EOFError, ConnectionError) as error:
    raise RuntimeError('a worker process died while starting') from error


def stop(env: AsyncVectorEnv, timeout: float = 5.0) -> None:
  """Ends the workers: a closed pipe lets them finish, then they are killed."""
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
  """Names the workers that ended by themselves, or '' if there are none."""
  time.sleep(0.1)  # A killed process takes a moment to be seen as ended.
  ended = [
    f'environment {i} (exit code {process.exitcode})'
    for i, process in enumerate(env.processes)
    if process.exitcode is not None
  ]
  return ', '.join(ended)


def work(
  index: int,
  make: Callable[[], gymnasium.Env],
  pipe: Any,
  parent_pipe: Any,
  buffers: Any,
  errors: Any,
  *others: Any,
) -> None:
  """The main function of a worker, in the protocol of AsyncVectorEnv."""
  del others  # Autoreset is always in the next step, concurrency unlimited.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  parent_pipe.close()
  _leave_accelerators_alone()
  env = None
  with contextlib.suppress(EOFError, ConnectionError):
    try:
      env = make()
      answer = _answers(env, index, buffers)
    except Exception as error:
      pipe.recv()  # The parent waits for an answer, not for a report.
      _report(index, error, pipe, errors)
      return
    _serve(index, answer, pipe, errors)
  if env is not None:
    env.close()


def _serve(index: int, answer: Callable, pipe: Any, errors: Any) -> None:
  while True:
    command, data = pipe.recv()
    if command == 'close':
      pipe.send((None, True))
      return
    try:
      result = answer(command, data)
    except Exception as error:
      _report(index, error, pipe, errors)
      return
    pipe.send((result, True))


def _answers(env: gymnasium.Env, index: int, buffers: Any) -> Callable:
  last = False

  def answer(command: str, data: Any) -> Any:
    nonlocal last
    if command == '_check_spaces':
      _, obs_space, act_space = data
      return obs_space == env.observation_space, act_space == env.action_space
    if command not in ('reset', 'step'):
      raise RuntimeError(f'unknown command {command!r}')
    reward: Any = 0.0
    terminated, truncated = False, False
    if command == 'reset':
      obs, info = env.reset(**data)
    elif last:
      obs, info = env.reset()
    else:
      obs, reward, terminated, truncated, info = env.step(data)
    last = terminated or truncated
    write_to_shared_memory(env.observation_space, index, obs, buffers)
    if command == 'reset':
      return None, info
    return None, reward, terminated, truncated, info

  return answer


def _report(index: int, error: Exception, pipe: Any, errors: Any) -> None:
  """Hands an error to the parent, which raises it: text, not objects."""
  if isinstance(error, UserError):
    errors.put((index, UserError, str(error), ''))
  else:
    trace = traceback.format_exc()
    text = f'{trace}\nenvironment {index}: {type(error).__name__}: {error}'
    errors.put((index, RuntimeError, text[-8000:], ''))
  pipe.send((None, False))


def _leave_accelerators_alone() -> None:
  """An environment written in JAX must not take the parent's TPU."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  if 'jax' in sys.modules:
    sys.modules['jax'].config.update('jax_platforms', 'cpu')


@contextlib.contextmanager
def _light_start() -> Iterator[None]:
  """Keeps what a child begins with small.

  Children do not import the main script (and with it JAX), and use one thread
  for linear algebra, since there is one process per environment.
  """
  main = sys.modules['__main__']
  added = [name for name in THREADS if name not in os.environ]
  os.environ.update(dict.fromkeys(added, '1'))
  sys.modules['__main__'] = types.ModuleType('__main__')
  try:
    yield
  finally:
    sys.modules['__main__'] = main
    for name in added:
      os.environ.pop(name, None)
