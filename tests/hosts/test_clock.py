"""When things are due."""

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
  times = (5, 14, 15, 16, 24.9, 40, 49, 50)
  assert [interval(0, now) for now in times] == [
    False, False, True, False, False, True, False, True,
  ]  # fmt: skip
  first = Interval(10, first=True)
  assert [first(0, now) for now in (3, 4, 13)] == [True, False, True]
