"""Trains an agent with the actor in a thread of its own.

Actor and learner wait for each other only to maintain `run.train_ratio`. Before
the first update, an actor with a filled replay waits for those of other hosts.
The main thread learns, as only it may launch collectives.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

from etils import epath
from ml_collections import ConfigDict

from dreamer_tpu.hosts.preemption import Preemption
from dreamer_tpu.run import setup, train
from dreamer_tpu.run.setup import Run


def main(
  config: ConfigDict, logdir: epath.Path, preemption: Preemption | None = None
) -> int:
  """Trains; see `train.main`."""
  with (
    setup.make(config, logdir, preemption) as run,
    train.saved_at_end(run),
    _actor(run) as wait,
  ):
    train.loop(run, wait, update_limit=1)
  return run.progress.exit_code


@contextlib.contextmanager
def _actor(run: Run) -> Iterator[Callable[[], None]]:
  """Acts in a thread.

  Yields:
    Function that waits until an update is due.
  """
  progress, timer = run.progress, run.timer
  ended = threading.Event()

  def act() -> None:
    try:
      while not ended.is_set():
        train.act(run)
        if progress.should_wait():
          with timer.section('actor_wait'):
            progress.wait(lambda: not progress.should_wait() or ended.is_set())
    except BaseException as error:
      progress.fail(error)

  def wait() -> None:
    if progress.idle:
      with timer.section('learner_wait'):
        progress.wait(lambda: not progress.idle)

  thread = threading.Thread(target=act, name='actor', daemon=True)
  thread.start()
  try:
    yield wait
  finally:
    ended.set()
    thread.join()
