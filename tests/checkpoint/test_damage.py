"""Corrupt files are named, and the run resumes from the previous step."""

import shutil

import pytest

from dreamer_tpu.checkpoint import layout
from dreamer_tpu.errors import UserError
from tests.helpers.small_run import Run, contents


@pytest.fixture(scope='module')
def original(tmp_path_factory):
  logdir = tmp_path_factory.mktemp('original')
  with Run(logdir) as run:
    run.save(10)
    expected = run.save(20)
    run.save(30)
  return logdir, expected


@pytest.fixture
def saved(original, tmp_path):
  logdir, expected = original
  shutil.copytree(logdir, tmp_path / 'logdir')
  return tmp_path / 'logdir', expected


FILES = {
  'data': 'checkpoints/30/agent/ocdbt.process_0/d/*',
  'index': 'checkpoints/30/agent/d/*',
  'ocdbt': 'checkpoints/30/agent/manifest.ocdbt',
  'tree': 'checkpoints/30/agent/_METADATA',
  'sharding': 'checkpoints/30/agent/_sharding',
  'arrays': 'checkpoints/30/agent/array_metadatas/process_0',
  'step': 'checkpoints/30/_CHECKPOINT_METADATA',
  'run': 'checkpoints/30/run/data.json',
  'manifest': 'checkpoints/30/replay/0.json',
  'sums': 'checkpoints/30/checksums.json',
}


def damage(path, fault):
  data = path.read_bytes()
  if fault == 'gone':
    path.unlink()
  elif fault == 'short':
    path.write_bytes(data[: len(data) // 2])
  else:
    middle = len(data) // 2
    flipped = bytes([data[middle] ^ 4])
    path.write_bytes(data[:middle] + flipped + data[middle + 1 :])


def newest_pack(logdir):
  """Returns a file that the newest step names and the previous one does not."""
  names = [
    {f['name'] for f in layout.read_manifests(folder)['0']['files']}
    for folder in (logdir / 'checkpoints' / x for x in ('20', '30'))
  ]
  return logdir / 'replay' / sorted(names[1] - names[0])[0]


CASES = [(x, y) for x in [*FILES, 'pack'] for y in ('short', 'flip', 'gone')]
CASES.remove(('sums', 'gone'))  # See below.


@pytest.mark.parametrize(('kind', 'fault'), CASES)
def test_fall_back(saved, caplog, kind, fault):
  logdir, expected = saved
  if kind == 'pack':
    path = newest_pack(logdir)
  else:
    (path,) = logdir.glob(FILES[kind])
  damage(path, fault)
  with Run(logdir) as run:
    assert run.restore() == 20
    lines = [x.getMessage() for x in caplog.records if x.levelname != 'INFO']
    assert any(path.name in x for x in lines), lines
    assert contents(run.replay) == expected
    assert run.checkpointer.steps() == [20]
    assert (logdir / 'checkpoints' / '30.damaged').is_dir()
    run.save(30)
    assert run.checkpointer.steps() == [20, 30]
    assert run.restore() == 30


def test_a_step_without_checksums_is_not_verified(saved):
  """The process was killed between the commit and the checksums."""
  logdir, _ = saved
  (logdir / 'checkpoints/30/checksums.json').unlink()
  with Run(logdir) as run:
    assert run.restore() == 30


def snapshot(logdir):
  return {
    path.relative_to(logdir): path.read_bytes()
    for path in logdir.rglob('*')
    if path.is_file() and path.name != 'lock'
  }


def refuse(logdir, load):
  before = snapshot(logdir)
  with Run(logdir) as run, pytest.raises(UserError) as info:
    run.checkpointer.restore_newest(lambda step: load(run, step))
  assert snapshot(logdir) == before
  assert '\n' not in str(info.value)
  return str(info.value)


def test_no_step_can_be_read(saved):
  logdir, _ = saved
  for kind in ('data', 'run'):
    for step in ('20', '30'):
      (path,) = logdir.glob(FILES[kind].replace('30', step))
      damage(path, 'flip')
  message = refuse(logdir, Run.load)
  assert '[30, 20] are corrupt' in message
  assert 'start a new logdir' in message


def test_a_step_that_does_not_fit_is_not_corrupt(saved):
  logdir, _ = saved
  other = {'task': 'dmc_walker_run'}
  message = refuse(logdir, lambda run, step: run.load(step, other))
  assert "task is 'dmc_walker_run'" in message
  # Nothing changes if a newer step is corrupt, either.
  damage(logdir / FILES['run'], 'flip')
  message = refuse(logdir, lambda run, step: run.load(step, other))
  assert "20' does not fit" in message


def test_a_file_without_permission_is_not_corrupt(saved, monkeypatch):
  logdir, _ = saved
  (path,) = logdir.glob(FILES['run'])

  def refused(folder):
    raise PermissionError(13, 'Permission denied', str(path))

  monkeypatch.setattr(layout, 'read_run', refused)  # Tests may run as root.
  assert 'Permission denied' in refuse(logdir, Run.load)


def test_files_of_a_quarantined_step_are_kept(saved):
  logdir, _ = saved
  names = {
    f['name']
    for f in layout.read_manifests(logdir / 'checkpoints/30')['0']['files']
  }
  damage(logdir / FILES['run'], 'short')
  with Run(logdir) as run:
    run.restore()
    for step in (40, 50, 60):
      run.save(step, rounds=60)  # More than the replay holds.
    assert run.checkpointer.steps() == [50, 60]
    assert all((logdir / 'replay' / name).exists() for name in names)
