"""Section timings, rates and goodput of a run."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping

Clock = Callable[[], float]

# Sections that do not advance the run.
UNPRODUCTIVE = ('starting', 'compiling', 'saving', 'reporting', 'evaluating')


@dataclasses.dataclass(frozen=True)
class Section:
  """Time spent in one section between two logs.

  Attributes:
    avg: Mean duration in seconds.
    max: Longest duration in seconds.
    count: Number of times the section was entered.
    frac: Fraction of the wall time.
  """

  avg: float
  max: float
  count: int
  frac: float


class Timer:
  """Accumulates time in named sections; thread-safe.

  Sections of one thread must not be nested, or their time counts twice.
  Sections of different threads overlap, so fractions add up to at most one per
  thread.

  Goodput is the productive fraction of the wall time since the run was first
  started. Unproductive are the sections in `UNPRODUCTIVE`, the time between
  two processes, and work lost in a crash: a checkpoint only holds the
  productive seconds before it. Unproductive sections belong to the main thread.

  Args:
    clock: Monotonic time in seconds.
    wall_clock: Time in seconds since the epoch.
  """

  def __init__(
    self, clock: Clock = time.perf_counter, wall_clock: Clock = time.time
  ) -> None:
    self._clock = clock
    self._wall_clock = wall_clock
    self._lock = threading.Lock()
    self._durations: dict[str, tuple[int, float, float]] = {}
    self._totals: dict[str, float] = {}  # Since the process started.
    self._start = self._since = clock()
    self._earlier = 0.0
    self._began = wall_clock()

  def resume(self, state: Mapping[str, float]) -> None:
    """Ends the startup phase: the time so far counts as 'starting'.

    Args:
      state: Result of `state()` before a restart; empty for a new run.
    """
    self.add('starting', self._clock() - self._start)
    self._earlier = float(state.get('productive', 0.0))
    self._began = float(state.get('began', self._began))

  @contextlib.contextmanager
  def section(self, name: str) -> Iterator[None]:
    """Counts the time spent in a `with` block under a name."""
    begin = self._clock()
    try:
      yield
    finally:
      self.add(name, self._clock() - begin)

  def add(self, name: str, seconds: float) -> None:
    """Counts a duration that was measured elsewhere."""
    with self._lock:
      count, total, longest = self._durations.get(name, (0, 0.0, 0.0))
      self._durations[name] = count + 1, total + seconds, max(longest, seconds)
      self._totals[name] = self._totals.get(name, 0.0) + seconds

  def take(self) -> dict[str, Section]:
    """Returns the sections since the last call, by name."""
    with self._lock:
      now = self._clock()
      elapsed = max(now - self._since, 1e-9)
      durations, self._durations = self._durations, {}
      self._since = now
    return {
      name: Section(total / count, longest, count, total / elapsed)
      for name, (count, total, longest) in durations.items()
    }

  def shares(self) -> dict[str, float]:
    """Returns each section's fraction of the time since the process started."""
    with self._lock:
      elapsed = max(self._clock() - self._start, 1e-9)
      return {name: total / elapsed for name, total in self._totals.items()}

  def goodput(self) -> float:
    """Returns the productive fraction of the wall time so far, in [0, 1]."""
    wall = max(self._wall_clock() - self._began, 1e-9)
    return min(1.0, self._productive() / wall)

  def state(self) -> dict[str, float]:
    """Returns the state of the clock for a checkpoint, as plain numbers."""
    return {'productive': self._productive(), 'began': self._began}

  def _productive(self) -> float:
    with self._lock:
      lost = sum(self._totals.get(name, 0.0) for name in UNPRODUCTIVE)
      return self._earlier + max(0.0, self._clock() - self._start - lost)


def section_metrics(sections: Mapping[str, Section]) -> dict[str, float]:
  """Returns `timer/NAME/{avg,max,count,frac}` of each section."""
  return {
    f'timer/{name}/{field}': value
    for name, section in sections.items()
    for field, value in dataclasses.asdict(section).items()
  }


class Rate:
  """Growth of a counter per second, such as `fps/policy` and `fps/train`.

  Args:
    count: Value of the counter at the start or resume.
    clock: Monotonic time in seconds.
  """

  def __init__(self, count: float, clock: Clock = time.perf_counter) -> None:
    self._clock = clock
    self._count = count
    self._time = clock()

  def __call__(self, count: float) -> float:
    """Returns the growth per second since the previous call."""
    now = self._clock()
    rate = (count - self._count) / max(now - self._time, 1e-9)
    self._count, self._time = count, now
    return rate
