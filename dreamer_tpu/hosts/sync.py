"""Exchange of values between the hosts of a run.

Every host runs the same updates in the same order, and all of them save, log,
report and stop together. Decisions must therefore depend on values that all
hosts share, never on one host's steps, signals or clock.
"""

import json
import os
import sys
import threading
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dreamer_tpu.sharding import arrays

_MIN_BYTES = 256  # Few sizes, as each is compiled.


class Consensus(NamedTuple):
  """Values that all hosts agree on.

  Attributes:
    steps: Agent steps of all hosts since the previous call.
    ready: Whether every host's replay holds enough data to train.
    stop: Whether any host was asked to stop.
    save: Whether any host was asked to save.
    now: Seconds since the start of the run on the clock of process 0.
  """

  steps: int
  ready: bool
  stop: bool
  save: bool
  now: float


class HostSync:
  """Exchanges values between all hosts.

  Every method launches a collective: all hosts must call the same methods in
  the same order, from the main thread. With one host nothing is exchanged. A
  host that dies while others wait for it is noticed by `Heartbeat`.

  Attributes:
    index: Number of this host.
  """

  def __init__(self) -> None:
    self.index = jax.process_index()
    self._count = jax.process_count()
    self._previous = time.monotonic()
    self._now = 0.0
    self._pending: jax.Array | None = None
    if self._count == 1:
      return
    first = {d.process_index: d for d in reversed(jax.devices())}
    devices = np.array([first[i] for i in range(self._count)])
    mesh = Mesh(devices, ('hosts',))
    self._rows = NamedSharding(mesh, PartitionSpec('hosts'))
    self._replicate = jax.jit(
      lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec())
    )

  def broadcast(self, value: Any) -> Any:
    """Returns the JSON value that process 0 passed."""
    return self.gather(value)[0]

  def gather(
    self,
    value: Any,
    *,
    name: str = 'an exchange of values',
    timeout: float = threading.TIMEOUT_MAX,
  ) -> list[Any]:
    """Returns the JSON values of all hosts, ordered by process.

    Args:
      value: Value of this host.
      name: Name of the exchange for the error message.
      timeout: Seconds after which the process ends; unlimited by default.
    """
    if self._count == 1:
      return [value]
    # A collective cannot be interrupted, so a timeout ends the process.
    timer = threading.Timer(timeout, _give_up, (name, timeout))
    timer.daemon = True
    timer.start()
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = self._exchange(np.array([len(data)], np.int32))[:, 0]
    longest = max(_MIN_BYTES, int(sizes.max()))
    padded = np.zeros(1 << (longest - 1).bit_length(), np.uint8)
    padded[: len(data)] = data
    rows = self._exchange(padded)
    timer.cancel()
    pairs = zip(rows, sizes, strict=True)
    return [json.loads(row[:size].tobytes()) for row, size in pairs]

  def barrier(self, name: str, timeout: float) -> None:
    """Waits until all hosts get here; after the timeout, ends the process."""
    self.gather(None, name=name, timeout=timeout)

  def agree(
    self, steps: int, ready: bool, stop: bool, save: bool = False
  ) -> Consensus:
    """Exchanges counters and flags without waiting for the network.

    With several hosts, returns what the hosts passed to the previous call.

    Args:
      steps: Agent steps of this host since the previous call.
      ready: Whether its replay holds enough data to train.
      stop: Whether it was asked to stop.
      save: Whether it was asked to save.
    """
    row = self._row(steps, ready, stop, save)
    if self._count == 1:
      return self._consensus(row[None])
    previous, self._pending = self._pending, self._launch(row)
    if previous is None:
      return Consensus(0, False, False, False, self._now)
    return self._consensus(arrays.to_host(previous))

  def drain(self, steps: int) -> int:
    """Waits for all hosts and returns their steps not yet agreed on.

    Args:
      steps: As in `agree`.
    """
    if self._count == 1:
      return steps
    pending = [self._pending, self._launch(self._row(steps))]
    self._pending = None
    rows = [arrays.to_host(x) for x in pending if x is not None]
    return sum(self._consensus(row).steps for row in rows)

  def _row(self, steps: int, *flags: bool) -> np.ndarray:
    elapsed = time.monotonic() - self._previous
    microseconds = min(int(elapsed * 1e6), np.iinfo(np.int32).max)
    self._previous += microseconds / 1e6
    ready, stop, save = flags or (False, False, False)
    return np.array([microseconds, steps, ready, stop, save], np.int32)

  def _consensus(self, rows: np.ndarray) -> Consensus:
    self._now += int(rows[0, 0]) / 1e6
    return Consensus(
      steps=int(rows[:, 1].sum()),
      ready=bool(rows[:, 2].all()),
      stop=bool(rows[:, 3].any()),
      save=bool(rows[:, 4].any()),
      now=self._now,
    )

  def _exchange(self, row: np.ndarray) -> np.ndarray:
    return arrays.to_host(self._launch(row))

  def _launch(self, row: np.ndarray) -> jax.Array:
    """Starts to gather one row per host."""
    return self._replicate(arrays.to_global(self._rows, row[None]))


def _give_up(name: str, timeout: float) -> None:
  print(
    f'error: Host {jax.process_index()} of {jax.process_count()}, this one: '
    f'waited {timeout:g} s for the other hosts at {name}.',
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)
