"""Snapshots: incremental, bounded on disk, consistent."""

import threading
from typing import ClassVar

import numpy as np
import pytest

from dreamer_tpu.replay import Replay, Sampling, prune, step_bytes
from dreamer_tpu.replay.saving import files, ledger
from tests.helpers.replay_model import (
  SPEC,
  Envs,
  Model,
  assert_same,
  check_all,
  fresh_latents,
  make,
)
from tests.helpers.saved_replay import (
  contents,
  files_under,
  save,
  saved_replay,
  stamp,
)


class Steps:
  """Replay of large steps, to count bytes."""

  spec: ClassVar = {
    'image': ((24, 24, 1), 'uint8'),
    'is_first': ((), 'bool'),
    'is_last': ((), 'bool'),
    'latent/deter': ((256,), 'bfloat16'),
  }
  row = 24 * 24 + 2 + 512

  def __init__(self, **kwargs):
    options = dict(
      length=17, capacity=20_000, chunksize=256, online=False, streams=4
    )
    self.replay = Replay(self.spec, **options | kwargs, seed=0)
    self.rng = np.random.default_rng(0)
    self.dirty = set()
    self.unsaved = 0

  def add(self, count):
    for _ in range(count):
      data = self.rng.integers(0, 2**16, (4, 256), np.uint16)
      self.replay.add(
        {
          'image': self.rng.integers(0, 256, (4, 24, 24, 1), np.uint8),
          'is_first': np.zeros(4, bool),
          'is_last': np.zeros(4, bool),
          'latent/deter': data.view('bfloat16'),
        }
      )
    self.unsaved += 4 * count

  def train(self, count):
    for _ in range(count):
      ids = self.replay.sample(8)[1]
      data = self.rng.integers(0, 2**16, (*ids.shape, 256), np.uint16)
      self.replay.update(ids, {'latent/deter': data.view('bfloat16')})
      self.dirty |= set(ids.reshape(-1).tolist())


@pytest.mark.parametrize('train', [0, 3, 60])
def test_bytes_written_and_bytes_on_disk(train, tmp_path, monkeypatch):
  monkeypatch.setattr(ledger, 'FILE_BYTES', 64 * 1024)
  steps = Steps(capacity=6000)
  steps.add(400)
  steps.train(train)
  manifests = [save(steps.replay, tmp_path)]
  written = new = 0
  for _ in range(25):
    saved = {
      address
      for chunk in steps.replay._store.chunks.values()
      for address in range(chunk.serial * 256, chunk.serial * 256 + chunk.fill)
    }
    steps.dirty, steps.unsaved = set(), 0
    steps.add(100)
    steps.train(train)
    live = {
      address
      for address in steps.dirty & saved
      if address // 256 in steps.replay._store.chunks
    }
    new += steps.unsaved * steps.row + len(live) * 512
    snapshot = steps.replay.snapshot(tmp_path)
    manifests = [*manifests, snapshot.write()][-2:]
    written += snapshot.written
    steps.replay.prune(tmp_path, manifests)
    disk = sum(p.stat().st_size for p in tmp_path.rglob('*.npys'))
    sizes = {f['name']: f['bytes'] for m in manifests for f in m['files']}
    assert disk <= 1.2 * sum(sizes.values())
  print('written / new', written / new, 'disk / memory', disk / 6000 / 1090)
  assert written <= 1.1 * new
  other = Steps(capacity=6000)
  other.replay.load(tmp_path, manifests[-1:])
  one, two = steps.replay.sample(200), other.replay.sample(200)
  assert (one[1] == two[1]).all()
  assert_same(one[0], two[0])


def test_disk_stays_bounded_over_many_small_saves(tmp_path):
  steps = Steps(capacity=2000, chunksize=64)
  for _ in range(10):
    steps.add(50)
    save(steps.replay, tmp_path)
  sizes = []
  for i in range(200):
    steps.train(1)
    if i >= 100:
      steps.add(4)
    manifest = save(steps.replay, tmp_path)
    steps.replay.prune(tmp_path, [manifest])
    rows = {'steps': 0, 'latents': 0}
    for file in manifest['files']:
      rows[file['kind']] += file['rows']
    sizes.append((rows['steps'], rows['latents'], len(manifest['files'])))
  steps_rows, latents_rows, count = (max(x) for x in zip(*sizes, strict=True))
  print('most rows, files:', steps_rows, latents_rows, count)
  assert count <= 170
  assert max(x[1] for x in sizes[-100:]) > 2000
  assert latents_rows <= 3.5 * 2000
  assert steps_rows <= 1.3 * 2000
  assert files_under(tmp_path) == {f['name'] for f in manifest['files']}


def test_a_save_without_changes_writes_nothing(tmp_path):
  replay, envs = make(), Envs(3)
  for _ in range(30):
    replay.add(envs.step())
  first = save(replay, tmp_path)
  before = files_under(tmp_path)
  snapshot = replay.snapshot(tmp_path)
  assert snapshot.write()['files'] == first['files']
  assert snapshot.written == 0
  assert files_under(tmp_path) == before
  # The first save after a load does not either.
  other = make()
  other.load(tmp_path, [first])
  snapshot = other.snapshot(tmp_path)
  assert snapshot.write()['files'] == first['files']
  assert snapshot.written == 0


def test_snapshot_holds_the_state_at_its_time(tmp_path):
  replay, envs = make(capacity=150), Envs(3)
  rng = np.random.default_rng(0)
  for _ in range(40):
    replay.add(envs.step())
  save(replay, tmp_path)
  twin = make(capacity=150)
  for round_ in range(6):
    ids = replay.sample(4)[1]
    replay.update(ids, fresh_latents(ids.shape, rng))
    replay.add(envs.step())
    # A copy made by a separate save before the snapshot.
    twin.load(tmp_path, [save(replay, tmp_path)])
    ids = replay.sample(4)[1]
    values = fresh_latents(ids.shape, rng)
    replay.update(ids, values)
    twin.sample(4)
    twin.update(ids, values)
    snapshot = replay.snapshot(tmp_path)
    # Everything changes and steps are dropped before a byte is written.
    for _ in range(5 + 9 * round_):
      replay.add(envs.step())
      _, ids = replay.sample(20)
      replay.update(ids, fresh_latents(ids.shape, rng))
    with pytest.raises(RuntimeError, match='still being written'):
      replay.snapshot(tmp_path)
    restored = make(capacity=150)
    restored.load(tmp_path, [snapshot.write()])
    assert contents(restored) == contents(twin)
    per_step = step_bytes(SPEC, 7, Sampling())
    assert replay.stats()['ram_gb'] == pytest.approx(
      replay._store.steps * per_step / 1e9
    )


def test_snapshot_under_concurrent_changes(tmp_path):
  steps = Steps()
  steps.add(1500)
  save(steps.replay, tmp_path)
  steps.train(100)
  steps.add(100)
  stop, changed = threading.Event(), threading.Event()

  def change():
    while not stop.is_set():
      steps.train(5)
      steps.add(1)
      changed.set()

  for _ in range(3):
    before = stamp(steps.replay)
    snapshot = steps.replay.snapshot(tmp_path)
    stop.clear()
    changed.clear()
    thread = threading.Thread(target=change)
    thread.start()
    try:
      assert changed.wait(600)  # A short save could end before.
      manifest = snapshot.write()
    finally:
      stop.set()
      thread.join()
    other = Steps()
    other.replay.load(tmp_path, [manifest])
    assert stamp(other.replay) == before
    assert stamp(steps.replay) != before


def test_discarded_and_failed_saves_lose_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(ledger, 'FILE_BYTES', 500)
  replay, model, envs = make(), Model(5, 200, 7, 3), Envs(3)
  rng = np.random.default_rng(0)
  manifests = []
  for i in range(60):
    step = envs.step()
    replay.add(step)
    model.add(step)
    if len(replay):
      ids = replay.sample(3)[1]
      values = fresh_latents(ids.shape, rng)
      replay.update(ids, values)
      model.update(ids, values)
    if i % 3 == 0:
      replay.snapshot(tmp_path).discard()
    elif i % 3 == 1:
      # The folder of the shard cannot be made, or a file cannot be written.
      snapshot = replay.snapshot(tmp_path)
      folder = tmp_path / '0000'
      hidden = tmp_path / 'hidden'
      if folder.exists():
        folder.rename(hidden)
      folder.write_text('in the way')
      with pytest.raises(OSError):
        snapshot.write()
      folder.unlink()
      if hidden.exists():
        hidden.rename(folder)
    elif i % 6 == 5:
      manifests = [*manifests, save(replay, tmp_path)][-2:]
      replay.prune(tmp_path, manifests)
      other = make()
      other.load(tmp_path, manifests[-1:])
      check_all(other, model)
  with pytest.raises(RuntimeError, match='written or discarded'):
    snapshot.write()


def test_prune_keeps_named_files_and_the_newest_save(tmp_path):
  replay, first, second, _ = saved_replay(tmp_path)
  prune(tmp_path, [first, second])
  names = {f['name'] for m in (first, second) for f in m['files']}
  assert files_under(tmp_path) == names
  # The newest manifest is kept although it is not committed yet.
  replay.prune(tmp_path, [first])
  assert files_under(tmp_path) == names
  prune(tmp_path, [first], first=1)
  assert files_under(tmp_path) == names
  prune(tmp_path, [first])
  assert files_under(tmp_path) == {f['name'] for f in first['files']}
  assert prune(tmp_path / 'nowhere', []) == []


def test_prune_at_any_moment(tmp_path, monkeypatch):
  monkeypatch.setattr(ledger, 'FILE_BYTES', 500)
  replay, envs = make(capacity=90), Envs(3)
  rng = np.random.default_rng(0)
  write = files.write_file

  def write_and_prune(*args):
    result = write(*args)
    replay.add(envs.step())
    replay.prune(tmp_path, [])
    return result

  monkeypatch.setattr(files, 'write_file', write_and_prune)
  for i in range(40):
    for _ in range(4):
      replay.add(envs.step(restart=True))
    if len(replay):
      ids = replay.sample(4)[1]
      replay.update(ids, fresh_latents(ids.shape, rng))
    manifest = save(replay, tmp_path)
    # Steps in the newest manifest are dropped from memory.
    for _ in range(i % 20):
      replay.add(envs.step())
    replay.prune(tmp_path, [])
    other = make(capacity=90)
    other.load(tmp_path, [manifest])
    # A new process has no newest manifest.
    other.prune(tmp_path, [])
    other.load(tmp_path, [manifest])
    if i % 5 == 4:
      replay = other


def test_another_directory_gets_everything(tmp_path):
  replay, _, _, _ = saved_replay(tmp_path / 'one')
  manifest = save(replay, tmp_path / 'two')
  other = make()
  other.load(tmp_path / 'two', [manifest])
  assert stamp(other) == stamp(replay)
