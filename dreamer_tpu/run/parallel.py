"""Acting and learning at the same time, each in a thread of its own.

Neither waits for the other but to keep to `run.train_ratio`: the actor when
the learner falls behind, the learner when no update is due. Before the first
update, an actor with a filled replay waits for those of other hosts. All
collectives are launched by the main thread, which learns.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

from etils import epath
from ml_collections import ConfigDict

from dreamer_tpu.run import start
from dreamer_tpu.run.session import Session


def main(config: ConfigDict, logdir: epath.Path) -> int:
  """As `train.main`."""
  with start.session(config, logdir) as run, _actor(run) as check:
    while run.going:
      check()
      if run.idle():
        with run.timer.section('learner_wait'):
          run.wait(lambda: not run.idle())
      run.turn(waits=False)
  return run.exit_code


@contextlib.contextmanager
def _actor(run: Session) -> Iterator[Callable[[], None]]:
  """Acts on a thread of its own; yields what raises its error, if any."""
  ended = threading.Event()
  errors: list[BaseException] = []

  def act() -> None:
    try:
      while not ended.is_set():
        if run.behind():
          with run.timer.section('actor_wait'):
            run.wait(lambda: not run.behind() or ended.is_set())
        else:
          run.act()
    except BaseException as error:
      errors.append(error)

  def check() -> None:
    if errors:
      raise errors[0]

  thread = threading.Thread(target=act, name='actor', daemon=True)
  thread.start()
  try:
    yield check
  finally:
    ended.set()
    thread.join()
  check()
