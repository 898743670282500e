"""What the process and its workers use of the machine."""

import time

import psutil


class Usage:
  """Memory and processor time of this process and all its children."""

  def __init__(self) -> None:
    self._process = psutil.Process()
    self._seconds: dict[int, float] = {}
    self._time = time.monotonic()
    self._cpu_seconds()

  def stats(self, hbm_bytes: float | None = None) -> dict[str, float]:
    """Returns the usage now, and of processors since the previous call.

    Args:
      hbm_bytes: Bytes in use on the first local device, from its
        `memory_stats()`; None where the device does not tell.

    Returns:
      `usage/ram_gb` (GB, memory shared with children counted once),
      `usage/cpu` (percent of one core, 800 is eight busy cores) and, where
      given, `usage/hbm_gb` (GB).
    """
    now = time.monotonic()
    seconds = self._cpu_seconds()
    elapsed = max(now - self._time, 1e-9)
    self._time = now
    stats = {
      'usage/ram_gb': self._ram_bytes() / 1e9,
      'usage/cpu': 100 * seconds / elapsed,
    }
    if hbm_bytes is not None:
      stats['usage/hbm_gb'] = hbm_bytes / 1e9
    return stats

  def _cpu_seconds(self) -> float:
    """Processor seconds since the previous call, of the living processes."""
    totals = {}
    for process in self._family():
      try:
        times = process.cpu_times()
      except psutil.NoSuchProcess:
        continue
      totals[process.pid] = times.user + times.system
    spent = sum(
      total - self._seconds.get(pid, 0.0) for pid, total in totals.items()
    )
    self._seconds = totals
    return max(spent, 0.0)

  def _ram_bytes(self) -> float:
    total = self._process.memory_info().rss
    for process in self._family()[1:]:
      try:
        info = process.memory_info()
      except psutil.NoSuchProcess:
        continue
      total += info.rss - getattr(info, 'shared', 0)
    return total

  def _family(self) -> list[psutil.Process]:
    return [self._process, *self._process.children(recursive=True)]
