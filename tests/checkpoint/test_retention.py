"""Retention: the steps that stay, their parts, and what is on disk."""

import pytest

from dreamer_tpu.checkpoint import layout
from dreamer_tpu.errors import UserError
from dreamer_tpu.tools import inspect
from tests.helpers.small_run import Run, contents


def with_replay(run):
  folder = run.checkpointer.directory
  return [x for x in layout.steps(folder) if layout.has_replay(folder / str(x))]


def test_keep_every(tmp_path):
  with Run(tmp_path, keep=2, keep_every=100) as run:
    for step in (40, 80, 120, 160, 250, 290, 310, 400):
      run.save(step)
    # 40 is the first, 160 the next that is 100 later, 290 the one after.
    assert run.checkpointer.steps() == [40, 160, 290, 310, 400]
    assert with_replay(run) == [310, 400]
  # A restart does not change them.
  with Run(tmp_path, keep=2, keep_every=100) as run:
    assert run.restore() == 400
    run.save(410)
    assert run.checkpointer.steps() == [40, 160, 290, 400, 410]


def test_keep_best(tmp_path):
  scores = {10: 1.0, 20: None, 30: 7.0, 40: 5.0, 50: float('nan'), 60: 5.0}
  with Run(tmp_path, keep=1, keep_best=2) as run:
    for step, score in scores.items():
      run.save(step, score=score)
    assert run.checkpointer.steps() == [30, 60]
    run.save(70)
    assert run.checkpointer.steps() == [30, 60, 70]
  with Run(tmp_path, keep=1, keep_best=2) as run:
    run.restore()
    run.save(80, score=6.0)
    assert run.checkpointer.steps() == [30, 80]
    assert with_replay(run) == [80]
  (tmp_path / 'checkpoints/90.damaged').mkdir()
  lines = list(inspect.report(tmp_path))
  assert 'steps 30, 80' in lines
  assert 'without replay 30' in lines
  assert 'corrupt 90.damaged' in lines
  assert 'score 6' in lines


def test_disk_holds_little_more_than_the_named_files(tmp_path):
  with Run(tmp_path, keep=2, keep_every=1) as run:
    for step in range(1, 12):
      run.save(step, rounds=30)
      named = {
        file['name']: file['bytes']
        for x in run.checkpointer.steps()
        for shard in layout.read_manifests(
          tmp_path / 'checkpoints' / str(x)
        ).values()
        for file in shard['files']
      }
      there = {
        str(path.relative_to(tmp_path / 'replay')): path.stat().st_size
        for path in (tmp_path / 'replay').rglob('*')
        if path.is_file()
      }
      assert named.items() <= there.items()
      assert sum(there.values()) <= 1.2 * sum(named.values())
    assert run.checkpointer.steps() == list(range(1, 12))
    assert with_replay(run) == [10, 11]


def test_a_step_without_replay_cannot_be_resumed(tmp_path):
  with Run(tmp_path, keep=1, keep_every=1) as run:
    run.save(10)
    run.save(20)
    restored = run.checkpointer.restore(10, run.shapes)
    assert restored.run['n'] == 10
    assert restored.replay == {}
  path = tmp_path / 'checkpoints/20/run/data.json'
  path.write_text('')
  with Run(tmp_path, keep=1) as run:
    with pytest.raises(UserError) as info:
      run.restore()
    assert "run.from_checkpoint='" in str(info.value)
    assert '[10] hold an agent but no replay' in str(info.value)


def test_the_marker_alone_drops_the_replay(tmp_path):
  """The process was killed before it deleted the manifests."""
  with Run(tmp_path, keep=2) as run:
    run.save(10)
    expected = contents(run.replay)
    run.save(20)
  (tmp_path / 'checkpoints/20/replay/released').touch()
  assert layout.read_manifests(tmp_path / 'checkpoints/20') == {}
  with Run(tmp_path) as run:
    assert run.restore() == 10
    assert contents(run.replay) == expected
