"""Memory and CPU usage of the process and its children."""

import contextlib
import time
from collections.abc import Callable

import psutil


class Usage:
  """Memory and CPU time of this process and all its children.

  Args:
    clock: Monotonic time in seconds.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
    self._process = psutil.Process()
    self._clock = clock
    self._time = clock()
    _, self._seconds = self._measure()

  def stats(self, hbm_bytes: float | None = None) -> dict[str, float]:
    """Returns the memory in use, and CPU usage since the previous call.

    Args:
      hbm_bytes: Bytes in use on the first local device, from its
        `memory_stats()`; None if the device does not report them.

    Returns:
      `usage/ram_gb` (GB; memory shared with children counts once),
      `usage/cpu` (percent of one core: 800 is eight busy cores) and
      `usage/hbm_gb` (GB; absent for None).
    """
    now = self._clock()
    elapsed = max(now - self._time, 1e-9)
    ram, seconds = self._measure()
    spent = sum(x - self._seconds.get(pid, 0.0) for pid, x in seconds.items())
    self._time, self._seconds = now, seconds
    stats = {
      'usage/ram_gb': ram / 1e9,
      'usage/cpu': 100 * max(spent, 0.0) / elapsed,
    }
    if hbm_bytes is not None:
      stats['usage/hbm_gb'] = hbm_bytes / 1e9
    return stats

  def _measure(self) -> tuple[float, dict[int, float]]:
    """Returns the bytes in use, and the CPU seconds of each live process."""
    ram, seconds = self._process.memory_info().rss, {}
    children = self._process.children(recursive=True)
    for process in (self._process, *children):
      with contextlib.suppress(psutil.NoSuchProcess):
        times, memory = process.cpu_times(), process.memory_info()
        seconds[process.pid] = times.user + times.system
        if process is not self._process:
          ram += memory.rss - getattr(memory, 'shared', 0)
    return ram, seconds
