"""Compares the replay with a reference; properties of its samples."""

import numpy as np
import pytest

from dreamer_tpu.errors import UserError
from dreamer_tpu.replay import Sampling
from tests.helpers.replay_model import (
  SPEC,
  Envs,
  Model,
  assert_same,
  check_all,
  fresh_latents,
  make,
)


def build(**kwargs):
  options = dict(length=5, capacity=200, chunksize=7, streams=3) | kwargs
  options.pop('online', None)
  model = Model(**options)
  return make(**kwargs), model, Envs(options['streams'])


@pytest.mark.parametrize('seed', range(6))
def test_random_operations_match_the_model(seed):
  rng = np.random.default_rng(seed)
  streams = int(rng.integers(1, 6))
  length = int(rng.integers(1, 9))
  chunksize = int(rng.integers(1, 12))
  capacity = streams * (length + 2 * chunksize + int(rng.integers(0, 60)))
  replay, model, envs = build(
    length=length, capacity=capacity, chunksize=chunksize, streams=streams
  )
  seen = np.zeros((0, length), np.int64)
  for _ in range(400):
    action = rng.integers(10)
    if action < 7:
      step = envs.step(restart=action == 0)
      replay.add(step)
      model.add(step)
    elif action == 7 and len(replay):
      data, seen = replay.sample(4)
      sequences = model.sequences()
      for i in range(4):
        assert seen[i].tolist() == sequences[int(seen[i, 0])]
        row = {key: value[i] for key, value in data.items()}
        assert_same(row, model.expect(seen[i].tolist()))
    else:
      # Addresses of old samples may have been dropped.
      values = fresh_latents(seen.shape, rng)
      replay.update(seen, values)
      model.update(seen, values)
  check_all(replay, model)


@pytest.mark.parametrize('count', [1, 3, 7, 40])
def test_extending_equals_adding_step_by_step(count):
  sampling = Sampling(uniform=0.4, priority=0.3, recency=0.3)
  options = dict(online=True, capacity=90, sampling=sampling)
  one, two, envs = make(**options), make(**options), Envs(3)
  for _ in range(120 // count):
    steps = [envs.step() for _ in range(count)]
    for step in steps:
      one.add(step)
    two.extend({k: np.stack([x[k] for x in steps]) for k in steps[0]})
    assert one._state() == two._state()
    if len(one):
      (data, ids), (same, same_ids) = one.sample(3), two.sample(3)
      assert_same({**data, 'ids': ids}, {**same, 'ids': same_ids})
  assert one.stats() == two.stats()


def test_rows_are_contiguous_and_new():
  replay, _, envs = build()
  for _ in range(40):
    replay.add(envs.step())
  one, ids = replay.sample(4)
  for value in (*one.values(), ids):
    assert value.flags.c_contiguous
    value[...] = 0
  two, _ = replay.sample(4)
  assert all(two[key].any() for key in ('image', 'vector', 'latent/deter'))


def test_adding_copies():
  replay, model, envs = build()
  for _ in range(20):
    step = envs.step()
    model.add(step)
    replay.add(step)
    for value in step.values():
      value[...] = 0
  check_all(replay, model)


def test_capacity_holds_and_every_stream_stays_sampleable():
  for capacity in (15, 16, 31, 100):
    replay, model, envs = build(capacity=capacity, chunksize=1000)
    model.chunksize = replay._chunksize
    for _ in range(120):
      step = envs.step()
      replay.add(step)
      model.add(step)
      assert len(model.steps) <= capacity
      assert replay.stats()['steps'] == len(model.steps)
    check_all(replay, model)
    assert len(replay) >= 3


def test_uniform_over_all_starts():
  replay, model, envs = build(capacity=240)
  for _ in range(130):
    step = envs.step()
    replay.add(step)
    model.add(step)
  starts = sorted(model.sequences())
  draws = 200 * len(starts)
  _, ids = replay.sample(draws)
  values, counts = np.unique(ids[:, 0], return_counts=True)
  assert values.tolist() == starts
  chi2 = ((counts - 200) ** 2 / 200).sum()
  freedom = len(starts) - 1
  assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_same_seed_same_samples():
  replays = [make(seed=3), make(seed=3), make(seed=4)]
  envs = Envs(3)
  for _ in range(50):
    step = envs.step()
    for replay in replays:
      replay.add(step)
  one, two, three = (replay.sample(16)[1] for replay in replays)
  assert (one == two).all()
  assert (one != three).any()


def test_online_covers_each_step_exactly_once():
  replay, _, envs = build(online=True, capacity=10_000)
  seen = []
  for t in range(1, 101):
    replay.add(envs.step())
    if t % 10 == 0:
      # Three streams have two new sequences each; each is drawn once.
      seen.append(replay.sample(6)[1])
  ids = np.concatenate(seen).reshape(-1).tolist()
  assert len(ids) == len(set(ids)) == 300


def test_online_queue_is_bounded_by_what_is_stored():
  replay, model, envs = build(online=True, capacity=60)
  for _ in range(500):
    step = envs.step()
    replay.add(step)
    model.add(step)
  assert len(replay._store._queue) <= 60 // 5
  _, ids = replay.sample(50)
  assert set(ids[:, 0].tolist()) <= set(model.sequences())
  quiet, _, _ = build(online=True)
  for _ in range(10):
    quiet.add(envs.step())
  before = len(quiet._store._queue)
  quiet.sample(4, online=False)
  assert len(quiet._store._queue) == before == 6


def test_stats():
  replay, _, envs = build(capacity=1000)
  for _ in range(20):
    replay.add(envs.step())
  replay.sample(4)
  row = 6 + 8 + 4 + 3 + 4 + 10 + 3
  assert replay.stats() == {
    'items': 48.0,
    'steps': 60.0,
    'imported': 0.0,
    'fill': 0.06,
    'ram_gb': pytest.approx(60 * (row + 5 + 9 * 300 / 7) / 1e9),
    'inserts': 60.0,
    'samples': 4.0,
    'replay_ratio': pytest.approx(20 / 60),
  }
  assert replay.stats()['inserts'] == 0


def test_errors():
  with pytest.raises(UserError, match=r'replay\.size 14 .* at least 15'):
    make(capacity=14)
  replay, _, envs = build()
  with pytest.raises(ValueError, match='no complete sequence'):
    replay.sample(1)
  step = envs.step()
  with pytest.raises(ValueError, match="keys \\['reward'\\]"):
    replay.add({k: v for k, v in step.items() if k != 'reward'})
  with pytest.raises(ValueError, match="'reward' is float64 \\[3\\]"):
    replay.add(step | {'reward': np.zeros(3)})
  with pytest.raises(ValueError, match="'vector' is float32 \\[3, 1\\]"):
    replay.add(step | {'vector': np.zeros((3, 1), np.float32)})
  with pytest.raises(ValueError, match="'reward' is not among the latents"):
    replay.update(np.zeros(1, np.int64), {'reward': np.zeros(1, np.float32)})
  assert replay.stats()['steps'] == 0
  assert set(SPEC) == set(step)


def test_update_ignores_steps_that_are_not_stored():
  replay, model, envs = build()
  for _ in range(10):
    step = envs.step()
    replay.add(step)
    model.add(step)
  rng = np.random.default_rng(0)
  ids = np.array([[-1, 10**12], [3 * 7, 3 * 7 + 3], [20, 21]])
  values = fresh_latents(ids.shape, rng)
  replay.update(ids, values)
  model.update(ids, values)
  check_all(replay, model)
