"""Memory and CPU usage of the process and its children, and their limit."""

import contextlib
import ctypes
import pathlib
import time
from collections.abc import Callable, Iterator

import psutil


def release_memory() -> None:
  """Returns freed memory to the system, such as that of a compiler.

  Only the C library of GNU/Linux can do so.
  """
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if trim is not None:
    trim(0)


def memory_limit(
  mounted: pathlib.Path = pathlib.Path('/sys/fs/cgroup'),
  own: pathlib.Path = pathlib.Path('/proc/self/cgroup'),
) -> tuple[int, str]:
  """Returns the memory of this process and its children at most.

  Args:
    mounted: Mount point of the control groups, of version 1 or 2.
    own: File that names the groups of this process.

  Returns:
    Bytes, and whether the limit is that of the 'machine' or of a 'cgroup'.
  """
  total = psutil.virtual_memory().total
  limits = [int(x) for x in _group_limits(mounted, own) if x.isdecimal()]
  return min([(total, 'machine'), *((x, 'cgroup') for x in limits)])


def _group_limits(mounted: pathlib.Path, own: pathlib.Path) -> Iterator[str]:
  """Yields the limits of the groups of a process and of their ancestors."""
  for line in own.read_text().splitlines() if own.exists() else ():
    _, controllers, path = line.split(':', 2)
    if controllers == '':
      root, name = mounted, 'memory.max'
    elif 'memory' in controllers.split(','):
      root, name = mounted / 'memory', 'memory.limit_in_bytes'
    else:
      continue
    group = root / path.lstrip('/')
    for folder in (group, *group.parents):
      with contextlib.suppress(OSError):
        yield (folder / name).read_text().strip()
      if folder == root:
        break


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
