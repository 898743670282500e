"""Steps written from elsewhere, and the share of a sample that they get."""

import json
import math

import numpy as np
import pytest

from dreamer_tpu.errors import UserError
from dreamer_tpu.replay import ImportWriter, prune, saved_streams
from dreamer_tpu.replay.saving import ledger
from tests.helpers.replay_model import (
  SPEC,
  Envs,
  Model,
  check_all,
  fresh_latents,
  make,
)
from tests.helpers.saved_replay import files_under, save, stored_streams


def episodes(count, seed=0):
  """Returns steps of random episodes, arrays [T, ...] each."""
  envs, rng = Envs(1, seed), np.random.default_rng(seed)
  found = []
  for _ in range(count):
    steps = [envs.step(restart=i == 0) for i in range(rng.integers(1, 30))]
    found.append({k: np.concatenate([x[k] for x in steps]) for k in SPEC})
  return found


def write(directory, data, chunksize=7):
  writer = ImportWriter(SPEC, directory, length=5, chunksize=chunksize)
  for episode in data:
    writer.add(episode)
  return json.loads(json.dumps(writer.finish()))


def all_steps(data):
  return {k: np.concatenate([x[k] for x in data]) for k in SPEC}


def test_imported_steps_are_loaded_saved_and_loaded_again(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(ledger, 'FILE_BYTES', 1000)
  data = episodes(10)
  manifest = write(tmp_path, data)
  assert len(manifest['files']) > 2
  replay, model = make(capacity=400), Model(5, 400, 7, 3)
  assert replay.load(tmp_path, [manifest])
  model.add_imported(all_steps(data))
  check_all(replay, model)
  # Latents are overwritten as those of other steps are; nothing else is saved.
  ids = replay.sample(4)[1]
  values = fresh_latents(ids.shape, np.random.default_rng(0))
  replay.update(ids, values)
  model.update(ids, values)
  second = save(replay, tmp_path)
  assert {x['name'] for x in manifest['files']} <= files_under(tmp_path)
  assert [x['kind'] for x in second['files']].count('steps') == len(
    manifest['files']
  )
  other, envs = make(capacity=400), Envs(3)
  assert other.load(tmp_path, [second])
  # Imported steps are the first to go, as they are the oldest.
  for _ in range(150):
    step = envs.step()
    other.add(step)
    model.add(step)
  check_all(other, model)
  assert other.stats()['imported'] == 0


def test_kept_steps_outlive_all_others(tmp_path):
  data = episodes(10)
  manifest = write(tmp_path, data)
  replay = make(capacity=300, keep_imported=0.25, online=True)
  model, envs = Model(5, 300, 7, 3, keep=True), Envs(3)
  replay.load(tmp_path, [manifest])
  model.add_imported(all_steps(data))
  assert (replay.sample(20)[1][:, 0] < 7 * len(manifest['streams'][0])).all()
  for i in range(1000):
    step = envs.step()
    replay.add(step)
    model.add(step)
    if i == 500:
      manifest = save(replay, tmp_path)
      replay = make(capacity=300, keep_imported=0.25, online=True, seed=1)
      replay.load(tmp_path, [manifest])
      step = envs.step(restart=True)
      replay.add(step)
      model.add(step)
  check_all(replay, model)
  assert replay.stats()['imported'] == len(model.imported)
  # A quarter of 8 is 2, also where the online queue could fill all.
  starts = replay.sample(8)[1][:, 0]
  assert np.isin(starts, list(model.imported)).sum() == 2
  # A quarter of 2 is one half on average.
  counts = [
    np.isin(replay.sample(2)[1][:, 0], list(model.imported)).sum()
    for _ in range(4000)
  ]
  assert set(counts) == {0, 1}
  assert abs(np.mean(counts) - 0.5) < 5 * 0.5 / math.sqrt(4000)


@pytest.mark.parametrize('count', [2, 3])
def test_hosts_get_equal_parts(tmp_path, count):
  data = episodes(20)
  steps = all_steps(data)['reward']
  manifests = [write(tmp_path, data)]
  for hosts in (count, 4, 1):
    shards = [
      make(capacity=1000, keep_imported=0.5, shard=i) for i in range(hosts)
    ]
    for shard in shards:
      shard.load(tmp_path, manifests, hosts)
    found = [
      np.concatenate([x['reward'] for s in stored_streams(shard) for x in s])
      for shard in shards
    ]
    sizes = [len(rewards) for rewards in found]
    assert max(sizes) - min(sizes) <= 1
    np.testing.assert_array_equal(np.concatenate(found), steps)
    manifests = [save(shard, tmp_path) for shard in shards]
    saved = saved_streams(tmp_path, manifests)
    found = [chunk['reward'] for stream in saved for chunk in stream]
    np.testing.assert_array_equal(np.concatenate(found), steps)
  # Streams of environments stay whole beside them.
  envs = Envs(3)
  for _ in range(40):
    shards[0].add(envs.step(restart=False))
  manifests = [save(shards[0], tmp_path)]
  again = [make(capacity=1000, shard=i) for i in range(2)]
  for shard in again:
    shard.load(tmp_path, manifests, 2)
  stats = [shard.stats() for shard in again]
  assert sorted(x['steps'] - x['imported'] for x in stats) == [40, 80]
  assert sum(x['imported'] for x in stats) == len(steps)


def test_too_little_room_to_keep_them(tmp_path):
  manifest = write(tmp_path, episodes(20))
  steps = manifest['inserted']
  small = make(capacity=steps + 50, keep_imported=0.5)
  needed = steps + 3 * (5 + 2 * 7)
  with pytest.raises(UserError, match=rf'replay\.size={needed},'):
    small.load(tmp_path, [manifest])
  assert len(small) == 0
  fits, envs = make(capacity=needed, keep_imported=0.5), Envs(3)
  fits.load(tmp_path, [manifest])
  for _ in range(200):
    fits.add(envs.step())
  assert fits.stats()['imported'] == steps
  # Without keeping them, the oldest are left out.
  other = make(capacity=100)
  other.load(tmp_path, [manifest])
  assert 90 < other.stats()['steps'] <= 100


def test_a_broken_episode_adds_nothing(tmp_path):
  good = episodes(3)
  bad = [
    good[0] | {'reward': good[0]['reward'].astype(np.float64)},
    {k: v for k, v in good[0].items() if k != 'action'},
    good[0] | {'vector': good[0]['vector'][:-1]},
    good[0] | {'is_first': np.zeros_like(good[0]['is_first'])},
    {k: v[:0] for k, v in good[0].items()},
  ]
  writer = ImportWriter(SPEC, tmp_path, length=5, chunksize=7)
  for episode in good:
    for broken in bad:
      with pytest.raises(ValueError):
        writer.add(broken)
    writer.add(episode)
  replay, model = make(capacity=400), Model(5, 400, 7, 3)
  replay.load(tmp_path, [writer.finish()])
  model.add_imported(all_steps(good))
  check_all(replay, model)


def test_an_import_without_a_manifest_is_pruned(tmp_path, monkeypatch):
  monkeypatch.setattr(ledger, 'FILE_BYTES', 500)
  writer = ImportWriter(SPEC, tmp_path, length=5, chunksize=7)
  for episode in episodes(8):
    writer.add(episode)
  left = files_under(tmp_path)
  assert left
  manifest = write(tmp_path, episodes(8, seed=1))
  assert not left & {x['name'] for x in manifest['files']}
  prune(tmp_path, [manifest])
  assert files_under(tmp_path) == {x['name'] for x in manifest['files']}
  empty = ImportWriter(SPEC, tmp_path, length=5, chunksize=7).finish()
  replay = make()
  replay.load(tmp_path, [empty])
  assert len(replay) == 0
