"""Progress of a run, and the pace of acting and learning."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from dreamer_tpu.errors import STOPPED
from dreamer_tpu.hosts.clock import Interval
from dreamer_tpu.hosts.sync import HostSync
from dreamer_tpu.replay import Replay
from dreamer_tpu.run.ratio import Ratio, same_pace


class Progress:
  """Counts steps and updates, and keeps acting and learning in step.

  The thread that acts may be another one than the main thread; it only uses
  `should_wait`, `add_steps`, `wait` and `acting`.

  Args:
    config: Configuration of the run.
    sync: Exchange between the hosts.
    replay: Training replay of this host.
    envs: Environments of this host.
    saved: `state` of the checkpoint to resume from; empty for a new run.
    unroll: Steps that every environment takes at a time.

  Attributes:
    step: Agent steps of all hosts, as far as all of them know.
    update: Updates so far.
    pending: Updates due by `run.train_ratio` that are not made yet.
    most_pending: Number of pending updates beyond which acting waits.
    logged: Value of `step` at the last log.
    saved: Value of `step` at the last save.
    max_step: Agent steps of the whole run.
    max_update: Updates of the whole run, if it is offline.
    offline: Whether the run only learns.
    trains: Whether updates are ever due.
    needed: Sequences in the replay of each host from which training starts.
    ready: Whether the replays of all hosts hold that many.
    acting: Lock to hold during a step of the environments.
    stopped: Whether the run was asked to stop.
    asked_to_save: Whether a host was asked to save, until the run has done so.
    failure: Error that ends the run once it is saved, or None.
    interrupted: Whether the run was asked to stop while the environments did
      not answer; they cannot be used any more.
  """

  def __init__(
    self,
    config: ConfigDict,
    sync: HostSync,
    replay: Replay,
    envs: int,
    saved: dict[str, Any],
    unroll: int = 1,
  ):
    run, hosts = config.run, jax.process_count()
    self._sync = sync
    self._replay = replay
    self._envs = envs
    self._unroll = unroll
    self.step = self.logged = saved.get('step', 0)
    self.saved = -1
    self.update = self._first_update = saved.get('update', 0)
    self.pending = 0
    self.max_step, self.max_update = run.steps, run.updates
    self.offline = bool(run.updates)
    self.trains = self.offline or run.train_ratio > 0
    self.needed = config.batch_size // hosts * config.batch_length
    self.ready = False
    self.acting = threading.Lock()
    self.failure: BaseException | None = None
    self.interrupted = False
    self._condition = threading.Condition()
    # Of this host: not handed to the other hosts yet, and not agreed on yet.
    self._new_steps = self._sent_steps = 0
    self._filled = self.filled  # By steps that were counted.
    self.stopped = self.asked_to_save = False
    self._now = 0.0
    batch_steps = config.batch_size * config.batch_length
    self._ratio = Ratio(run.train_ratio, batch_steps)
    if saved:
      self._ratio.load(saved['ratio'])
      # At another pace, they would be a burst of updates.
      if same_pace(config, saved['config']):
        self.pending = saved.get('owed', 0)
    # Updates per new step, if all hosts act as fast as this one.
    self._rate = run.train_ratio / batch_steps * hosts
    # Those of two steps; with more, the actor would be far ahead.
    self.most_pending = int(1 + 2 * self._rate * envs)
    self._intervals = {
      'log': Interval(run.log_every, first=True, update=self.update),
      'report': Interval(run.report_every, update=self.update),
      'save': Interval(run.save_every, update=self.update),
    }

  @property
  def filled(self) -> bool:
    """True if the replay of this host holds enough data to train."""
    return len(self._replay) >= self.needed

  @property
  def first_training_step(self) -> int:
    """Agent steps at which the replays of all hosts hold enough data."""
    rows = math.ceil((self.needed - len(self._replay)) / self._envs)
    if not len(self._replay):
      rows += self._replay.length - 1
    rows += -rows % self._unroll
    return self.step + rows * self._envs * jax.process_count()

  @property
  def done(self) -> bool:
    """True if the run has reached its end, and has made its updates."""
    if self.offline:
      return self.update >= self.max_update
    return self.acted and not (self.ready and self.pending)

  @property
  def acted(self) -> bool:
    """True if all steps of the run are taken; its last updates may be due."""
    return not self.offline and self.step >= self.max_step

  @property
  def running(self) -> bool:
    """True until the run is done or asked to stop."""
    return not self.done and not self.stopped

  @property
  def exit_code(self) -> int:
    """0 when done, 75 when stopped early."""
    return STOPPED if self.stopped and not self.done else 0

  @property
  def idle(self) -> bool:
    """True if no update is due, as far as this host knows."""
    return not (self.offline or self.pending or self._new_steps)

  @property
  def caught_up(self) -> bool:
    """True if no update is pending, or if the last one compiled."""
    compiled = self.update == self._first_update + 1
    return compiled or not (self.offline or self.pending)

  @property
  def unlogged(self) -> bool:
    """True if anything happened since the last log."""
    return self.step > self.logged or self.offline

  def should_wait(self) -> bool:
    """Returns whether acting is ahead of learning or of other hosts."""
    if self.offline or self.acted or self.failure or self.interrupted:
      return True
    if not self.ready:
      return self.filled
    pending = self.pending + self._new_steps * self._rate
    return pending > 1 + 2 * self._rate * self._envs

  def add_steps(self) -> int:
    """Counts the steps that every environment of this host takes at a time.

    They are in the replay already. Whether they fill it becomes known together
    with them, so that updates are due from the same step in every run.

    Returns:
      Agent steps after it, as far as this host knows.
    """
    with self._condition:
      self._new_steps += self._envs * self._unroll
      self._filled = self._filled or self.filled
      self._condition.notify_all()
      return self.step + self._sent_steps + self._new_steps

  def add_update(self) -> None:
    """Counts an update."""
    with self._condition:
      self.update += 1
      if not self.offline:
        self.pending -= 1
      self._condition.notify_all()

  def wait(self, condition: Callable[[], bool]) -> None:
    """Waits until the other thread makes a condition true, at most 0.1 s."""
    with self._condition:
      self._condition.wait_for(condition, timeout=0.1)

  def fail(self, error: BaseException) -> None:
    """Lets all hosts stop and save; only the first error counts."""
    self.failure = self.failure or error

  @contextlib.contextmanager
  def failing(self) -> Iterator[None]:
    """Calls `fail` if the body fails, which exchanges nothing with hosts."""
    try:
      yield
    except Exception as error:
      self.fail(error)

  def agree(self, stop: bool, save: bool = False) -> None:
    """Adds the steps of all hosts, one call late if there are several.

    Args:
      stop: Whether this host was asked to stop.
      save: Whether this host was asked to save.
    """
    stop = stop or self.failure is not None
    own, filled = self._take_steps()
    consensus = self._sync.agree(own, filled, stop, save)
    self.stopped |= consensus.stop
    self.asked_to_save |= consensus.save
    self.ready |= consensus.ready
    self._now = consensus.now
    self._advance(consensus.steps, sent=own if jax.process_count() > 1 else 0)

  def drain(self) -> None:
    """Adds all steps of all hosts; waits for them."""
    own, _ = self._take_steps()
    self._advance(self._sync.drain(own))

  def updates_due(self, limit: int) -> int:
    """Returns how many updates to make now, at most `limit`."""
    return 1 if self.offline else min(self.pending, limit)

  def due(self, event: str) -> bool:
    """Returns whether to 'log', 'report' or 'save' now.

    A resume keeps what was logged up to the step of its checkpoint. So nothing
    is logged after a save until there are new steps.
    """
    if event != 'save' and self.step == self.saved and not self.offline:
      return False
    if event == 'log' and (self.acted or not (self.running and self.unlogged)):
      return False  # The end of the run is logged separately.
    due = self._intervals[event](self.update, self._now)
    return due or (event == 'save' and self.asked_to_save)

  def state(self) -> dict[str, Any]:
    """Returns the state as JSON values."""
    return {
      'step': self.step,
      'update': self.update,
      'owed': self.pending,
      'ratio': self._ratio.state(),
    }

  def _take_steps(self) -> tuple[int, bool]:
    """Returns new steps, and whether the replay is filled with them."""
    with self._condition:
      steps, self._new_steps = self._new_steps, 0
      self._sent_steps += steps
      return steps, self._filled

  def _advance(self, steps: int, sent: int = 0) -> None:
    with self._condition:
      self.step += steps
      self._sent_steps = sent
    if self.ready and not self.offline:
      self.pending += self._ratio(steps)
