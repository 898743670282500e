"""When things are due."""

import itertools

import pytest

from dreamer_tpu.hosts.clock import Interval


def test_zero_is_never():
  assert not any(Interval(0)(i, i) for i in range(5))
  assert not any(Interval(0, first=True)(i, i) for i in range(5))


def test_negative_is_once_for_interval_update():
  interval = Interval(-1)
  assert [interval(i, 0) for i in (0, 0, 1, 1, 2, 5, 5)] == [
    False, False, True, False, True, True, False,
  ]  # fmt: skip


def test_seconds_pass_before_it_is_due_again():
  interval = Interval(10)
  times = (5, 14, 15, 15.1, 15.2, 25.1, 25.2, 40)
  assert [interval(0, now) for now in times] == [
    False, False, True, False, False, False, True, False,
  ]  # fmt: skip
  first = Interval(10, first=True)
  times = (3, 3.1, 3.2, 13.1, 13.2)
  assert [first(0, x) for x in times] == [True, False, False, False, True]


@pytest.mark.parametrize('late', [False, True])
def test_seconds_count_from_the_end_of_an_event(late):
  """The clock of several hosts is one call late."""
  interval, now, shown, fired = Interval(10), 0.0, 0.0, []
  for _ in range(400):
    shown, now = (shown, now + 1) if late else (now + 1, now + 1)
    if interval(0, shown):
      fired.append(now)
      now += 15  # The event takes longer than its interval.
    shown = now if late else shown
  pauses = [y - x - 15 for x, y in itertools.pairwise(fired)]
  assert len(fired) > 10
  assert 10 <= min(pauses) <= max(pauses) <= 13
