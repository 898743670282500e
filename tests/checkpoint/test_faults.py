"""Disks that become full or read-only during a run."""

import gc
import re
import sys

import pytest

from tests.helpers.small_run import Run, contents


def warnings(caplog):
  return [x.getMessage() for x in caplog.records if x.levelname == 'WARNING']


def files(path):
  return {x.relative_to(path) for x in path.rglob('*') if x.is_file()}


@pytest.mark.parametrize('fault', ['full', 'read-only'])
def test_a_save_fails_and_the_run_continues(disk, caplog, fault):
  reason = {
    'full': 'No space left|File too large',
    'read-only': 'Read-only|denied',
  }
  with Run(disk.path) as run:
    first = run.save(10)
    run.save(20)
    disk.fill(free=40_000) if fault == 'full' else disk.read_only(True)
    before = files(disk.path)
    run.save(30, rounds=100, fails=True)
    run.save(40, rounds=100, fails=True)
    (line,) = warnings(caplog)
    assert '\n' not in line
    assert line.startswith('Saving step 30 failed: ')
    assert any(x in line for x in reason[fault].split('|'))
    assert 'The run continues; the newest checkpoint is of step 20' in line
    if fault == 'full':
      found = re.search(r'needs about (\d+) kB, .* free on (.*)\. Th', line)
      assert found
      assert found[2] == str(disk.path / 'checkpoints')
      assert 16 < int(found[1]) < 100  # 16 kB of arrays, and the replay.
    assert run.checkpointer.steps() == [10, 20]
    # Failed saves occupy no space.
    assert {x for x in files(disk.path) if x.suffix != '.npys'} == {
      x for x in before if x.suffix != '.npys'
    }
    disk.empty() if fault == 'full' else disk.read_only(False)
    expected = run.save(50)
    assert warnings(caplog)[1:] == [
      'Saving works again; step 50 is saved.',
    ]
    assert run.checkpointer.steps() == [20, 50]
  with Run(disk.path) as run:
    assert run.restore() == 50
    assert contents(run.replay) == expected != first


@pytest.mark.parametrize('free', [0, 4_000, 8_000, 12_000])
def test_a_run_ends_quietly_on_a_full_disk(disk, monkeypatch, free):
  unraisable = []
  gc.collect()  # What earlier tests have left.
  monkeypatch.setattr(sys, 'unraisablehook', unraisable.append)
  with Run(disk.path) as run:
    run.save(10)
    disk.fill(free=free)
    for step in range(20, 25):
      run.save(step, fails=True)
  assert not unraisable
