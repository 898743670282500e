"""Progress of a run, and the pace of acting and learning."""

import threading
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from dreamer_tpu.hosts.clock import Interval
from dreamer_tpu.hosts.preemption import EXIT_CODE
from dreamer_tpu.hosts.sync import HostSync
from dreamer_tpu.replay import Replay
from dreamer_tpu.run.ratio import Ratio


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

  Attributes:
    step: Agent steps of all hosts, as far as all of them know.
    update: Updates so far.
    pending: Updates due by `run.train_ratio` that are not made yet.
    logged: Value of `step` at the last log.
    max_step: Agent steps of the whole run.
    max_update: Updates of the whole run, if it is offline.
    offline: Whether the run only learns.
    needed: Sequences in the replay of each host from which training starts.
    ready: Whether the replays of all hosts hold that many.
    acting: Lock to hold during a step of the environments.
  """

  def __init__(
    self,
    config: ConfigDict,
    sync: HostSync,
    replay: Replay,
    envs: int,
    saved: dict[str, Any],
  ):
    run, hosts = config.run, jax.process_count()
    self._sync = sync
    self._replay = replay
    self._envs = envs
    self.step = self.logged = saved.get('step', 0)
    self.update = self._first_update = saved.get('update', 0)
    self.pending = saved.get('owed', 0)
    self.max_step, self.max_update = run.steps, run.updates
    self.offline = bool(run.updates)
    self.needed = config.batch_size // hosts * config.batch_length
    self.ready = False
    self.acting = threading.Lock()
    self._condition = threading.Condition()
    self._new_steps = 0  # Of this host, not agreed on yet.
    self._stopped = False
    self._now = 0.0
    batch_steps = config.batch_size * config.batch_length
    self._ratio = Ratio(run.train_ratio, batch_steps)
    if saved:
      self._ratio.load(saved['ratio'])
    # Updates per new step, if all hosts act as fast as this one.
    self._rate = run.train_ratio / batch_steps * hosts
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
  def done(self) -> bool:
    """True if the run has reached its end."""
    if self.offline:
      return self.update >= self.max_update
    return self.step >= self.max_step

  @property
  def running(self) -> bool:
    """True until the run is done or asked to stop."""
    return not self.done and not self._stopped

  @property
  def exit_code(self) -> int:
    """0 when done, 75 when stopped early."""
    return 0 if self.done else EXIT_CODE

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
    if self.offline:
      return True
    if not self.ready:
      return self.filled
    pending = self.pending + self._new_steps * self._rate
    return pending > 1 + 2 * self._rate * self._envs

  def add_steps(self) -> None:
    """Counts a step of every environment of this host."""
    with self._condition:
      self._new_steps += self._envs
      self._condition.notify_all()

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

  def agree(self, stop: bool) -> None:
    """Adds the steps of all hosts, one call late if there are several.

    Args:
      stop: Whether this host was asked to stop.
    """
    consensus = self._sync.agree(self._take_steps(), self.filled, stop)
    self._stopped |= consensus.stop
    self.ready |= consensus.ready
    self._now = consensus.now
    self._advance(consensus.steps)

  def drain(self) -> None:
    """Adds all steps of all hosts; waits for them."""
    self._advance(self._sync.drain(self._take_steps()))

  def updates_due(self, limit: int | None = None) -> int:
    """Returns how many updates to make now."""
    if self.offline:
      return 1
    return self.pending if limit is None else min(self.pending, limit)

  def due(self, event: str) -> bool:
    """Returns whether to 'log', 'report' or 'save' now."""
    if event == 'log' and not (self.running and self.unlogged):
      return False  # The end of the run is logged separately.
    return self._intervals[event](self.update, self._now)

  def state(self) -> dict[str, Any]:
    """Returns the state as JSON values."""
    return {
      'step': self.step,
      'update': self.update,
      'owed': self.pending,
      'ratio': self._ratio.state(),
    }

  def _take_steps(self) -> int:
    with self._condition:
      steps, self._new_steps = self._new_steps, 0
    return steps

  def _advance(self, steps: int) -> None:
    self.step += steps
    if self.ready and not self.offline:
      self.pending += self._ratio(self.step)
