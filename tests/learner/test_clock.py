"""When things are due."""

from dreamer_tpu.learner.clock import Every


def test_zero_is_never():
  assert not any(Every(0)(i) for i in range(5))
  assert not any(Every(0, first=True)(i) for i in range(5))


def test_negative_is_once_for_every_update():
  every = Every(-1)
  assert [every(i) for i in (0, 0, 1, 1, 2, 5, 5)] == [
    False, False, True, False, True, True, False,
  ]  # fmt: skip


def test_seconds_pass_before_it_is_due_again():
  every = Every(3600)
  assert not every(1)
  first = Every(3600, first=True)
  assert first(1)
  assert not first(2)
  assert Every(1e-9)(1)
