"""Memory of the host over a long run."""

import pytest

from tests.helpers import program


@pytest.mark.slow
def test_memory_of_the_host_stays(tmp_path):
  """Memory stays constant once the replay is full.

  A report's video alone has 1.7 MB of pixels, so keeping every one would add
  hundreds of MB in the second half.
  """
  ended = program.run(
    tmp_path,
    '--config=configs/crafter.py:debug',
    '--config.replay.size=400',
    '--config.run.steps=2400',
    '--config.run.log_every=1',
    '--config.run.report_every=-1',
    '--config.run.save_every=5',
  )
  assert ended.code == 0, ended.err
  metrics = program.read(tmp_path / 'metrics.jsonl')
  assert sum('report/loss/total' in x for x in metrics) > 250
  assert len(program.steps(tmp_path)) >= 1
  late = [x for x in metrics if 'usage/ram_gb' in x and x['step'] > 800]
  half = len(late) // 2
  first, last = (
    [x['usage/ram_gb'] for x in part] for part in (late[:half], late[half:])
  )
  grown = sum(last) / len(last) - sum(first) / len(first)
  assert grown < 0.03, f'{first[0]:.3f} ... {last[-1]:.3f} GB'
