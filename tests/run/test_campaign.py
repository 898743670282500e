"""Runs a short campaign of faults."""

from tests.run import campaign

KINDS = ('kill', 'hang', 'full', 'removed')


def test_faults_at_random(tmp_path):
  kinds = campaign.possible(KINDS, hosts=[1])
  short = campaign.Campaign(tmp_path, 0, [1], kinds, faults=len(kinds))
  short.run()
  assert not short.failures, short.table()
