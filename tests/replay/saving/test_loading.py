"""Loads saved replays under changed settings."""

import numpy as np
import pytest

from dreamer_tpu.errors import UserError
from dreamer_tpu.replay import Replay, prune
from dreamer_tpu.replay.saving import ledger
from tests.helpers.replay_model import (
  SPEC,
  Envs,
  Model,
  assert_same,
  check_all,
  fresh_latents,
  make,
)
from tests.helpers.saved_replay import contents, files_under, save, saved_replay


def assert_twins(one, two, envs, rounds=40):
  """Checks that two replays behave identically from now on."""
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
  # Tiny files, so that there are many.
  monkeypatch.setattr(ledger, 'FILE_BYTES', 500)
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
      # Environments start an episode or, unlike real ones, continue.
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
    resaved = make(chunksize=chunksize)
    folder = tmp_path / str(chunksize)
    resaved.load(folder, [save(other, folder)])
    assert contents(resaved) == contents(replay)
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
    # No shard of this run owns the folders of shards from `count` on.
    prune(tmp_path, manifests, first=count)
    named = {f['name'] for m in manifests for f in m['files']}
    assert files_under(tmp_path) == named


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
  # In two shards with smaller chunks, the queues hold equal steps.
  shards = [make(online=True, shard=i, chunksize=4) for i in range(2)]
  rewards = set()
  for shard in shards:
    shard.load(tmp_path, [manifest], 2)
    count = len(shard._store._queue)
    rewards |= set(shard.sample(count)[0]['reward'].reshape(-1).tolist())
  assert len(rewards) == 60
  # With another sequence length, all sequences are found, none is queued.
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


def test_other_specs_raise_errors_that_name_the_key(tmp_path):
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
