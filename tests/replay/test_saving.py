"""Saving and restoring: nothing lost, nothing written twice, faults named."""

import json
import pathlib
import threading
from typing import ClassVar

import numpy as np
import pytest

from dreamer_tpu.errors import UserError
from dreamer_tpu.replay import Replay, ReplayCorrupt, files, ledger, prune
from tests.replay.replay_model import (
  SPEC,
  Envs,
  Model,
  assert_same,
  check_all,
  fresh_latents,
  make,
)


def save(replay, directory):
  """Saves, and gives the manifest as it comes back from a file."""
  return json.loads(json.dumps(replay.save(directory)))


def files_under(directory):
  return {
    str(path.relative_to(directory))
    for path in pathlib.Path(directory).rglob('*')
    if path.is_file()
  }


def assert_twins(one, two, envs, rounds=40):
  """Two replays behave the same from here on."""
  rng = np.random.default_rng(7)
  for i in range(rounds):
    step = envs.step(restart=i == 0)
    one.add(step)
    two.add(step)
    assert len(one) == len(two)
    if len(one):
      (data, ids), (data2, ids2) = one.sample(3), two.sample(3)
      assert_same(data, data2)
      assert (ids == ids2).all()
      values = fresh_latents(ids.shape, rng)
      one.update(ids, values)
      two.update(ids, values)


@pytest.mark.parametrize('seed', range(8))
def test_random_operations_with_saves_and_restores(seed, tmp_path, monkeypatch):
  # Tiny files, so that there are many of them.
  monkeypatch.setattr(ledger, '_FILE_BYTES', 500)
  rng = np.random.default_rng(seed)
  streams = int(rng.integers(1, 5))
  length = int(rng.integers(1, 8))
  chunksize = int(rng.integers(2, 12))
  options = dict(
    length=length,
    capacity=streams * (length + 2 * chunksize + int(rng.integers(0, 40))),
    chunksize=chunksize,
    streams=streams,
  )
  replay, model = make(**options, online=True), Model(**options)
  envs = Envs(streams, seed)
  manifests = []
  restart = None
  for i in range(500):
    action = rng.integers(12)
    if action < 6:
      step = envs.step(restart is True)
      if restart is not None and not step['is_first'].all():
        model.restart()
      restart = None
      replay.add(step)
      model.add(step)
    elif action < 10 and len(replay):
      ids = replay.sample(3)[1]
      values = fresh_latents(ids.shape, rng)
      replay.update(ids, values)
      model.update(ids, values)
    elif action == 10:
      manifests = [*manifests, save(replay, tmp_path)][-2:]
      replay.prune(tmp_path, manifests)
      named = {f['name'] for m in manifests for f in m['files']}
      assert named <= files_under(tmp_path)
    elif action == 11 and rng.random() < 0.5:
      manifests = [*manifests, save(replay, tmp_path)][-2:]
      replay = make(**options, online=True, seed=i)
      replay.load(tmp_path, manifests[-1:])
      check_all(replay, model)
      # Environments begin an episode, or (which they do not) go on.
      restart = bool(rng.integers(2))
  check_all(replay, model)


def test_restored_replay_is_a_twin(tmp_path):
  replay, envs = make(online=True, capacity=150), Envs(3)
  rng = np.random.default_rng(0)
  for i in range(90):
    replay.add(envs.step())
    if i > 20:
      ids = replay.sample(2)[1]
      replay.update(ids, fresh_latents(ids.shape, rng))
    if i in (30, 60):
      save(replay, tmp_path)
  replay.stats()
  replay.add(envs.step())
  replay.sample(5)
  manifest = save(replay, tmp_path)
  other = make(online=True, capacity=150, seed=11)
  other.load(tmp_path, [manifest])
  assert replay.stats() == other.stats()
  assert_twins(replay, other, envs)


def test_steps_that_begin_no_episode_start_new_streams(tmp_path):
  replay, model = make(), Model(5, 200, 7, 3)
  envs = Envs(3)
  for _ in range(10):
    step = envs.step()
    replay.add(step)
    model.add(step)
  other = make()
  other.load(tmp_path, [save(replay, tmp_path)])
  model.restart()
  for _ in range(20):
    step = envs.step()
    step['is_first'][0] = False
    other.add(step)
    model.add(step)
  check_all(other, model)


def test_other_number_of_environments(tmp_path):
  replay, model, envs = make(), Model(5, 200, 7, 3), Envs(3)
  for _ in range(30):
    step = envs.step()
    replay.add(step)
    model.add(step)
  other = make(streams=2, capacity=200)
  other.load(tmp_path, [save(replay, tmp_path)])
  check_all(other, model)
  model.old, model.streams = model.streams, [[], []]
  model.serials, model.count = [None] * 2, 0
  envs = Envs(2)
  for _ in range(40):
    step = envs.step()
    other.add(step)
    model.add(step)
  check_all(other, model)


def contents(replay):
  """Every step that is in a sequence, in a form that can be compared."""
  rows = set()
  _, ids = replay.sample(4000, online=False)
  starts = np.unique(ids[:, 0])
  data, _ = replay.gather(starts, 0, replay.length)
  for index in np.ndindex(data['reward'].shape):
    keys = ('image', 'vector', 'reward', 'latent/deter', 'latent/stoch')
    rows.add(b''.join(data[key][index].tobytes() for key in keys))
  return rows


def test_other_chunk_size_and_smaller_capacity(tmp_path):
  replay, envs = make(chunksize=16), Envs(3)
  for _ in range(50):
    replay.add(envs.step())
  manifest = save(replay, tmp_path)
  for chunksize in (3, 5, 16, 25):
    other = make(chunksize=chunksize)
    other.load(tmp_path, [manifest])
    assert len(other) == len(replay)
    assert contents(other) == contents(replay)
    again = make(chunksize=chunksize)
    folder = tmp_path / str(chunksize)
    again.load(folder, [save(other, folder)])
    assert contents(again) == contents(replay)
  small = make(capacity=90, chunksize=4)
  small.load(tmp_path, [manifest])
  assert 3 * 26 <= small.stats()['steps'] <= 90
  assert contents(small) < contents(replay)


def test_elastic_one_two_four_one(tmp_path):
  replay, envs = make(streams=8, capacity=4000), Envs(8)
  for _ in range(60):
    replay.add(envs.step())
  want = contents(replay)
  manifests = [save(replay, tmp_path)]
  for count in (2, 4, 1, 3):
    shards = [make(streams=2, capacity=4000, shard=i) for i in range(count)]
    for shard in shards:
      shard.load(tmp_path, manifests, count)
    parts = [contents(shard) for shard in shards]
    assert sum(len(part) for part in parts) == len(want)
    assert set().union(*parts) == want
    sizes = [shard.stats()['steps'] for shard in shards]
    assert max(sizes) - min(sizes) <= 60
    manifests = [save(shard, tmp_path) for shard in shards]
    for shard in shards:
      shard.prune(tmp_path, manifests)
    # No shard of this run owns the folders of further ones.
    prune(tmp_path, manifests, shards=range(count, 4))
    named = {f['name'] for m in manifests for f in m['files']}
    assert files_under(tmp_path) == named


class Steps:
  """Large steps for figures about bytes."""

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
  monkeypatch.setattr(ledger, '_FILE_BYTES', 64 * 1024)
  steps = Steps(capacity=6000)
  steps.add(400)
  steps.train(train)
  manifests = [steps.replay.save(tmp_path)]
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
    steps.replay.save(tmp_path)
  sizes = []
  for i in range(200):
    steps.train(1)
    if i >= 100:
      steps.add(4)
    manifest = steps.replay.save(tmp_path)
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


def test_a_save_without_news_writes_nothing(tmp_path):
  replay, envs = make(), Envs(3)
  for _ in range(30):
    replay.add(envs.step())
  first = save(replay, tmp_path)
  before = files_under(tmp_path)
  snapshot = replay.snapshot(tmp_path)
  assert snapshot.write()['files'] == first['files']
  assert snapshot.written == 0
  assert files_under(tmp_path) == before
  # Neither does the first save after a restore.
  other = make()
  other.load(tmp_path, [first])
  snapshot = other.snapshot(tmp_path)
  assert snapshot.write()['files'] == first['files']
  assert snapshot.written == 0


def test_snapshot_is_what_was_at_the_snapshot(tmp_path):
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
    # A twin by a save of its own, before the snapshot.
    twin.load(tmp_path, [save(replay, tmp_path)])
    ids = replay.sample(4)[1]
    values = fresh_latents(ids.shape, rng)
    replay.update(ids, values)
    twin.sample(4)
    twin.update(ids, values)
    snapshot = replay.snapshot(tmp_path)
    # Everything changes, steps are dropped, before a byte is written.
    for _ in range(5 + 9 * round_):
      replay.add(envs.step())
      _, ids = replay.sample(20)
      replay.update(ids, fresh_latents(ids.shape, rng))
    with pytest.raises(RuntimeError, match='still being written'):
      replay.snapshot(tmp_path)
    restored = make(capacity=150)
    restored.load(tmp_path, [snapshot.write()])
    # Twice, as the samples of twins move their generators.
    assert contents(restored) == contents(twin)
    assert replay.stats()['ram_gb'] == pytest.approx(
      replay._store.steps * 43e-9
    )


def test_snapshot_under_concurrent_changes(tmp_path):
  steps = Steps()
  steps.add(1500)
  steps.replay.save(tmp_path)
  steps.train(100)
  steps.add(100)
  stop = threading.Event()
  changes = 0

  def change():
    nonlocal changes
    while not stop.is_set():
      steps.train(5)
      steps.add(1)
      changes += 1

  for _ in range(3):
    before = stamp(steps.replay)
    snapshot = steps.replay.snapshot(tmp_path)
    stop.clear()
    thread = threading.Thread(target=change)
    thread.start()
    try:
      manifest = snapshot.write()
    finally:
      stop.set()
      thread.join()
    other = Steps()
    other.replay.load(tmp_path, [manifest])
    assert stamp(other.replay) == before
    assert stamp(steps.replay) != before
  assert changes


def stamp(replay):
  """The bytes of all that is stored."""
  return {
    (serial, key): array[: chunk.fill].tobytes()
    for serial, chunk in replay._store.chunks.items()
    for key, array in chunk.arrays.items()
  }


def test_discarded_and_failed_saves_lose_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(ledger, '_FILE_BYTES', 500)
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


def saved_replay(directory):
  replay, envs = make(), Envs(3)
  rng = np.random.default_rng(0)
  for _ in range(40):
    replay.add(envs.step())
  first = save(replay, directory)
  ids = replay.sample(4)[1]
  replay.update(ids, fresh_latents(ids.shape, rng))
  second = save(replay, directory)
  kinds = {f['kind']: directory / f['name'] for f in second['files']}
  assert set(kinds) == {'steps', 'latents'}
  return replay, first, second, kinds


@pytest.mark.parametrize('kind', ['steps', 'latents'])
@pytest.mark.parametrize('fault', ['short', 'long', 'flip', 'gone', 'empty'])
def test_damaged_files_are_named(kind, fault, tmp_path):
  replay, first, second, kinds = saved_replay(tmp_path)
  path = kinds[kind]
  data = path.read_bytes()
  if fault == 'gone':
    path.unlink()
  else:
    position = len(data) // 2
    flipped = bytes([data[position] ^ 4])
    path.write_bytes(
      {
        'short': data[:-1],
        'long': data + b'\0',
        'flip': data[:position] + flipped + data[position + 1 :],
        'empty': b'',
      }[fault]
    )
  other = make()
  with pytest.raises(ReplayCorrupt) as error:
    other.load(tmp_path, [second])
  message = str(error.value)
  assert path.name in message
  assert '\n' not in message
  assert len(other) == 0
  if kind == 'latents':
    # The previous save does not need the file.
    other.load(tmp_path, [first])
    assert len(other) == len(replay)


def test_missing_entries_and_manifests(tmp_path):
  _, _, manifest, _ = saved_replay(tmp_path)
  lost = manifest | {
    'files': [f for f in manifest['files'] if f['kind'] != 'steps']
  }
  with pytest.raises(ReplayCorrupt, match='names no file for 120 of its'):
    make().load(tmp_path, [lost])
  with pytest.raises(ReplayCorrupt, match='no replay manifest for shard 1'):
    make(shard=1).load(tmp_path, [manifest], 1)
  with pytest.raises(UserError, match='format 99'):
    make().load(tmp_path, [manifest | {'format': 99}])


def test_a_file_that_goes_during_the_run_is_written_again(tmp_path):
  for kind in ('steps', 'latents'):
    replay, _, _, kinds = saved_replay(tmp_path / kind)
    kinds[kind].unlink()
    with pytest.raises(ReplayCorrupt, match='the next save writes it again'):
      replay.save(tmp_path / kind)
    other = make()
    other.load(tmp_path / kind, [save(replay, tmp_path / kind)])
    assert stamp(other) == stamp(replay)


def test_leftovers_of_a_killed_run_do_no_harm(tmp_path):
  replay, first, _, _ = saved_replay(tmp_path)
  # The later saves were never committed; the run starts again from the first.
  other = make()
  other.load(tmp_path, [first])
  envs = Envs(3, seed=5)
  rng = np.random.default_rng(5)
  for _ in range(4):
    replay.add(envs.step())
    ids = replay.sample(4)[1]
    replay.update(ids, fresh_latents(ids.shape, rng))
    save(replay, tmp_path)
  before = {
    name: (tmp_path / name).read_bytes() for name in files_under(tmp_path)
  }
  (tmp_path / '0000' / 'tmp-steps-0001-00000009.npys').write_bytes(b'half')
  (tmp_path / '0000' / 'notes.txt').write_text('mine')
  # With as many saves, but of other kinds, the names would meet.
  for i in range(8):
    other.add(envs.step(restart=i == 0))
    if i:
      ids = other.sample(4)[1]
      other.update(ids, fresh_latents(ids.shape, rng))
    manifest = save(other, tmp_path)
  for name, data in before.items():
    assert (tmp_path / name).read_bytes() == data
  other.prune(tmp_path, [manifest])
  assert files_under(tmp_path) == {
    '0000/notes.txt',
    *(f['name'] for f in manifest['files']),
  }
  third = make()
  third.load(tmp_path, [manifest])
  assert stamp(third) == stamp(other)


def test_prune_keeps_what_is_named_and_what_is_under_way(tmp_path):
  replay, first, second, _ = saved_replay(tmp_path)
  prune(tmp_path, [first, second])
  names = {f['name'] for m in (first, second) for f in m['files']}
  assert files_under(tmp_path) == names
  # The newest manifest is kept though nobody has committed it yet.
  replay.prune(tmp_path, [first])
  assert files_under(tmp_path) == names
  prune(tmp_path, [first], shards=[1])
  assert files_under(tmp_path) == names
  prune(tmp_path, [first])
  assert files_under(tmp_path) == {f['name'] for f in first['files']}
  assert prune(tmp_path / 'nowhere', []) == []


def test_prune_at_any_moment(tmp_path, monkeypatch):
  monkeypatch.setattr(ledger, '_FILE_BYTES', 500)
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
    # What the newest manifest names is dropped from memory meanwhile.
    for _ in range(i % 20):
      replay.add(envs.step())
    replay.prune(tmp_path, [])
    other = make(capacity=90)
    other.load(tmp_path, [manifest])
    # A fresh process has no newest manifest of its own.
    other.prune(tmp_path, [])
    other.load(tmp_path, [manifest])
    if i % 5 == 4:
      replay = other


def test_online_queue_is_restored(tmp_path):
  replay, envs = make(online=True), Envs(3)
  for _ in range(22):
    replay.add(envs.step())
  manifest = save(replay, tmp_path)
  other = make(online=True, seed=9)
  other.load(tmp_path, [manifest])
  _, ids = other.sample(12)
  assert sorted(ids.reshape(-1).tolist()) == sorted(
    replay.sample(12)[1].reshape(-1).tolist()
  )
  assert len(set(ids.reshape(-1).tolist())) == 60
  # Dealt out, or in other chunks, they are the same steps.
  dealt = [make(online=True, shard=i, chunksize=4) for i in range(2)]
  rewards = set()
  for shard in dealt:
    shard.load(tmp_path, [manifest], 2)
    count = len(shard._store._queue)
    rewards |= set(shard.sample(count)[0]['reward'].reshape(-1).tolist())
  assert len(rewards) == 60
  # With sequences of another length, all of them are found, none queued.
  for length in (3, 8):
    changed = make(online=True, length=length)
    changed.load(tmp_path, [manifest])
    assert len(changed) == 3 * (22 - length + 1)
    assert not changed._store._queue
    for _ in range(length):
      changed.add(envs.step(restart=True))
    assert changed.sample(30)[1].shape == (30, length)


def test_the_oldest_steps_go_first_after_a_change_of_chunks(tmp_path):
  replay, envs = make(chunksize=32, capacity=300), Envs(3)
  for t in range(64):
    step = envs.step()
    step['reward'] = np.full(3, t, np.float32)
    step['vector'][:, 0] = range(3)
    replay.add(step)
  manifest = save(replay, tmp_path)
  small = make(capacity=90, chunksize=4)
  small.load(tmp_path, [manifest])
  data, _ = small.sample(2000)
  for stream in range(3):
    times = data['reward'][data['vector'][..., 0] == stream]
    assert 63 - 30 - 4 < times.min() <= 63 - 30 + 4
    assert times.max() == 63


def test_another_directory_gets_everything(tmp_path):
  replay, _, _, _ = saved_replay(tmp_path / 'one')
  manifest = save(replay, tmp_path / 'two')
  other = make()
  other.load(tmp_path / 'two', [manifest])
  assert stamp(other) == stamp(replay)


def test_other_steps_are_refused_by_name(tmp_path):
  _, _, manifest, _ = saved_replay(tmp_path)
  cases = [
    (
      SPEC | {'image': ((4, 2, 1), 'uint8')},
      r"'image' is uint8 \[3, 2, 1\] .* uint8 \[4, 2, 1\]",
    ),
    (
      SPEC | {'latent/deter': ((5,), 'float32')},
      r"'latent/deter' is bfloat16 \[5\] .* float32 \[5\]",
    ),
    (SPEC | {'extra': ((), 'int32')}, r"'extra' is missing .* int32 \[\]"),
    (
      {k: v for k, v in SPEC.items() if k != 'action'},
      r"'action' is int32 \[\] .* missing",
    ),
  ]
  for spec, message in cases:
    options = dict(length=5, capacity=200, chunksize=7, online=False)
    other = Replay(spec, **options, streams=3, seed=0)
    with pytest.raises(UserError, match=message):
      other.load(tmp_path, [manifest])
