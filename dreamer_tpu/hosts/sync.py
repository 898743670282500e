"""What all hosts know of each other, the same on all of them.

The learner runs the same updates in the same order on every host, and all
save, log, report and stop together. None of them may therefore act on what it
alone knows: its steps, its signals, its clock.
"""

import time
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dreamer_tpu.sharding import arrays


class Known(NamedTuple):
  """One round.

  Attributes:
    steps: Agent steps that all hosts have made since the round before.
    ready: Whether every host's replay holds enough to train.
    stop: Whether any host was told to stop.
    now: Seconds since the start of the run, by the clock of process 0.
  """

  steps: int
  ready: bool
  stop: bool
  now: float


class Agreement:
  """Exchanges a few numbers between all hosts, once a round.

  With several hosts a round hands out what was given to the one before: so it
  has long arrived and nobody waits for it, and an update may be under way
  meanwhile. All hosts must call the methods in the same order, as they launch
  collectives.
  """

  def __init__(self) -> None:
    self._previous = time.monotonic()
    self._now = 0.0
    self._pending: jax.Array | None = None
    if jax.process_count() == 1:
      return
    first = {d.process_index: d for d in reversed(jax.devices())}
    devices = np.array([first[i] for i in range(jax.process_count())])
    mesh = Mesh(devices, ('hosts',))
    self._rows = NamedSharding(mesh, PartitionSpec('hosts'))
    self._gather = jax.jit(
      lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec())
    )

  def __call__(self, steps: int, ready: bool, stop: bool) -> Known:
    """One round.

    Args:
      steps: Agent steps that this host has made since the last call.
      ready: Whether its replay holds enough to train.
      stop: Whether it was told to stop.
    """
    mine = self._mine(steps, ready, stop)
    if jax.process_count() == 1:
      return self._known(mine)
    previous, self._pending = self._pending, self._send(mine)
    if previous is None:
      return Known(0, False, False, self._now)
    return self._known(arrays.to_host(previous))

  def settle(self, steps: int) -> int:
    """Waits until all steps are known.

    Args:
      steps: As in a round.

    Returns:
      Steps of all hosts that no round has handed out yet.
    """
    if jax.process_count() == 1:
      return steps
    rows = [self._pending, self._send(self._mine(steps, False, False))]
    self._pending = None
    return sum(
      self._known(arrays.to_host(row)).steps for row in rows if row is not None
    )

  def every(self, flag: bool) -> bool:
    """Whether all hosts say so; waits for them."""
    if jax.process_count() == 1:
      return flag
    mine = np.array([[0, flag, 0, 0]], np.int32)
    return bool(arrays.to_host(self._send(mine))[:, 1].all())

  def _mine(self, steps: int, ready: bool, stop: bool) -> np.ndarray:
    now = time.monotonic()
    passed = min(int((now - self._previous) * 1e6), np.iinfo(np.int32).max)
    self._previous += passed / 1e6
    return np.array([[steps, ready, stop, passed]], np.int32)

  def _send(self, mine: np.ndarray) -> jax.Array:
    return self._gather(arrays.to_global(self._rows, mine))

  def _known(self, table: np.ndarray) -> Known:
    """Of the table [hosts, 4]."""
    self._now += int(table[0, 3]) / 1e6
    steps, ready, stop = table[:, 0].sum(), table[:, 1].all(), table[:, 2].any()
    return Known(int(steps), bool(ready), bool(stop), self._now)
