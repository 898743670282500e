"""Where the time of a run goes: sections, rates and goodput."""

import threading
import time
from collections.abc import Mapping

# Time in these sections brings the run no further.
UNPRODUCTIVE = (
  'starting',
  'compiling',
  'saving',
  'reporting',
  'evaluating',
)


class Timer:
  """Adds up the time spent in named sections; usable from several threads.

  Sections of one thread should not contain each other, or their time counts
  twice. Sections of different threads run side by side, so that the fractions
  of each thread add up to at most one.

  Goodput is the share of the wall time since the very first start of the run
  that brought it further: without the sections in `UNPRODUCTIVE`, without the
  time between two processes, and without work that was lost because a crash
  came before the next checkpoint (what is restored knows only the productive
  seconds up to it). Unproductive sections belong to the main thread.
  """

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._sections: dict[str, list[float]] = {}
    self._totals: dict[str, float] = {}
    self._start = self._since = time.perf_counter()
    self._lost = 0.0
    self._earlier = 0.0
    self._began = time.time()

  def resume(self, state: Mapping[str, float]) -> None:
    """Ends the start of the process: the time so far counts as 'starting'.

    Args:
      state: What `state()` returned before a restart, empty for a fresh run.
    """
    self.add('starting', time.perf_counter() - self._start)
    self._earlier = float(state.get('productive', 0.0))
    self._began = float(state.get('began', self._began))

  def section(self, name: str) -> '_Section':
    """Returns a context manager whose duration counts under the name."""
    return _Section(self, name)

  def add(self, name: str, seconds: float) -> None:
    """Counts a duration that was measured elsewhere."""
    with self._lock:
      entry = self._sections.setdefault(name, [0, 0.0, 0.0])
      entry[0] += 1
      entry[1] += seconds
      entry[2] = max(entry[2], seconds)
      self._totals[name] = self._totals.get(name, 0.0) + seconds
      if name in UNPRODUCTIVE:
        self._lost += seconds

  def stats(self, reset: bool = True) -> dict[str, float]:
    """Returns the sections since the last reset.

    Returns:
      For each section `timer/NAME/avg` and `/max` (seconds), `/count`, and
      `/frac` (share of the wall time).
    """
    now = time.perf_counter()
    with self._lock:
      elapsed = max(now - self._since, 1e-9)
      stats = {}
      for name, (count, total, longest) in self._sections.items():
        stats[f'timer/{name}/avg'] = total / count
        stats[f'timer/{name}/max'] = longest
        stats[f'timer/{name}/count'] = count
        stats[f'timer/{name}/frac'] = total / elapsed
      if reset:
        self._sections.clear()
        self._since = now
      return stats

  def shares(self) -> dict[str, float]:
    """Returns `timer/NAME/frac` since this process started."""
    elapsed = max(time.perf_counter() - self._start, 1e-9)
    with self._lock:
      return {f'timer/{k}/frac': v / elapsed for k, v in self._totals.items()}

  def goodput(self) -> float:
    """Returns the productive share of the wall time so far, in [0, 1]."""
    wall = max(time.time() - self._began, 1e-9)
    return min(1.0, self._productive() / wall)

  def state(self) -> dict[str, float]:
    """Returns what a checkpoint keeps of the clock: plain numbers."""
    return {'productive': self._productive(), 'began': self._began}

  def _productive(self) -> float:
    elapsed = time.perf_counter() - self._start
    return self._earlier + max(0.0, elapsed - self._lost)


class _Section:
  """One use of a section."""

  __slots__ = ('_begin', '_name', '_timer')

  def __init__(self, timer: Timer, name: str) -> None:
    self._timer = timer
    self._name = name

  def __enter__(self) -> None:
    self._begin = time.perf_counter()

  def __exit__(self, *_: object) -> None:
    self._timer.add(self._name, time.perf_counter() - self._begin)


class Rate:
  """How fast a counter grows, as for `fps/policy` and `fps/train`."""

  def __init__(self, count: float = 0) -> None:
    """Args: count: where the counter stands at the start or resume."""
    self._count = count
    self._time = time.perf_counter()

  def __call__(self, count: float) -> float:
    """Returns the growth per second since the previous call."""
    now = time.perf_counter()
    rate = (count - self._count) / max(now - self._time, 1e-9)
    self._count, self._time = count, now
    return rate
