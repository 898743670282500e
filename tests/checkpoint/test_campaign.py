"""Runs a short campaign of kills."""

from tests.checkpoint.campaign import Campaign


def test_kills_at_random_moments(tmp_path):
  result = Campaign(tmp_path).run(kills=5)
  assert not result.faults
  assert result.writing >= 2
  assert result.commits >= 5
