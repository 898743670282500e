"""Sampling frequencies, compared with exact probabilities."""

import math

import numpy as np
import pytest

from dreamer_tpu.replay import Sampling
from tests.helpers.replay_model import Envs, Model, make
from tests.helpers.saved_replay import save

OPTIONS = dict(length=5, capacity=200, chunksize=7, streams=3)
PLAIN = dict(initial=2.0, zero_on_sample=False)


class Reference:
  """Probabilities of all sequences, from a dict of priorities."""

  def __init__(self, sampling):
    self.sampling = sampling
    self.model = Model(**OPTIONS)
    self.priorities = {}
    self.order = []

  def add(self, step):
    before = set(self.model.sequences())
    self.model.add(step)
    new = set(self.model.sequences()) - before
    self.order += sorted(new)

  def shares(self):
    sequences = self.model.sequences()
    order = [x for x in self.order if x in sequences]
    assert len(order) == len(sequences)
    s = self.sampling
    uniform = dict.fromkeys(order, 1.0)
    recency = {
      x: 1 / (age + 1) ** s.recexp for age, x in enumerate(reversed(order))
    }
    priority = {}
    for start in order:
      powers = [
        self.priorities.get(x, s.initial) ** s.exponent
        for x in sequences[start]
      ]
      mean = sum(powers) / len(powers)
      priority[start] = s.maxfrac * max(powers) + (1 - s.maxfrac) * mean
    total = dict.fromkeys(order, 0.0)
    for share, weights in (
      (s.uniform, uniform),
      (s.priority, priority),
      (s.recency, recency),
    ):
      for x, weight in weights.items() if share else ():
        total[x] += share * weight / sum(weights.values())
    return total


def grow(replay, reference, rng, steps=150, restart=False):
  """Adds steps and sets some priorities, as training does."""
  envs = Envs(3, seed=int(rng.integers(1000)))
  for i in range(steps):
    step = envs.step(restart=restart and i == 0)
    replay.add(step)
    reference.add(step)
    if len(replay) and i % 3 == 0:
      ids = replay.sample(2, rng=rng)[1][:, 1:]
      # One of them is no longer stored.
      ids = np.concatenate([ids, ids[:1] - 10**6])
      values = rng.exponential(size=ids.shape).astype(np.float32) ** 4
      replay.prioritize(ids, values)
      reference.priorities |= dict(
        zip(ids.reshape(-1).tolist(), values.reshape(-1).tolist(), strict=True)
      )


def check(replay, reference, draws=20_000):
  expected = reference.shares()
  ids = replay.sample(draws, steps=1)[1][:, 0]
  starts, counts = np.unique(ids, return_counts=True)
  assert set(starts.tolist()) <= set(expected)
  found = dict(zip(starts.tolist(), counts.tolist(), strict=True))
  chi2 = freedom = 0.0
  for start, share in expected.items():
    if share * draws > 5:
      chi2 += (found.get(start, 0) - share * draws) ** 2 / (share * draws)
      freedom += 1
  assert freedom > 50
  assert chi2 < freedom + 5 * math.sqrt(2 * freedom)


KINDS = {
  'uniform': Sampling(),
  'priority': Sampling(0, 1, 0, **PLAIN),
  'mean': Sampling(0, 1, 0, 1.0, 0.0, **PLAIN),
  'maximum': Sampling(0, 1, 0, 0.5, 1.0, **PLAIN),
  'recency': Sampling(0, 0, 1),
  'square root': Sampling(0, 0, 1, recexp=0.5),
  'mixture': Sampling(0.5, 0.25, 0.25, **PLAIN),
}


@pytest.mark.parametrize('kind', KINDS)
def test_frequencies_with_removals_and_restores(kind, tmp_path):
  sampling = KINDS[kind]
  rng = np.random.default_rng(0)
  replay, reference = make(**OPTIONS, sampling=sampling), Reference(sampling)
  grow(replay, reference, rng, steps=40)
  check(replay, reference)
  grow(replay, reference, rng)  # Beyond the capacity.
  check(replay, reference, draws=100_000)
  manifest = save(replay, tmp_path)
  other = make(**OPTIONS, sampling=sampling, seed=5)
  other.load(tmp_path, [manifest])
  assert (other.sample(500)[1] == replay.sample(500)[1]).all()
  check(other, reference)
  grow(other, reference, rng, steps=30, restart=True)
  check(other, reference)


def test_sequences_never_drawn_come_first():
  sampling = Sampling(0, 1, 0)  # Defaults of the public implementation.
  replay, envs = make(**OPTIONS, sampling=sampling), Envs(3)
  for _ in range(60):
    replay.add(envs.step())
  # Drawing for a report changes nothing.
  replay.sample(100, rng=np.random.default_rng(0))
  stored = set(replay.sample(3000, rng=np.random.default_rng(0))[1].flat)
  seen = set()
  while seen < stored:
    (ids,) = replay.sample(1)[1]
    assert set(ids.tolist()) - seen
    seen |= set(ids.tolist())
  # All priorities are 0, so sampling is uniform. Then one is set.
  drawn = replay.sample(3000)[1][:, 0]
  assert len(set(drawn.tolist())) > 100
  target = int(drawn[0])
  for step in (math.nan, math.inf, 3.0):
    replay.prioritize(np.array([target]), np.array([step]))
  (ids,) = replay.sample(1)[1]
  assert target in ids.tolist()
  # Drawing it set it to 0 again.
  assert len(set(replay.sample(100)[1][:, 0].tolist())) > 20


@pytest.mark.parametrize('count', [1, 2])
def test_priorities_survive_other_chunk_sizes_and_shards(count, tmp_path):
  sampling = Sampling(0, 1, 0, **PLAIN)
  replay, envs = make(**OPTIONS, sampling=sampling), Envs(3)
  for _ in range(50):
    replay.add(envs.step())
  data, ids = replay.sample(1)
  replay.prioritize(ids, np.full(ids.shape, 1e6, np.float32))
  manifest = save(replay, tmp_path)
  shards = [
    make(**OPTIONS | {'chunksize': 4}, sampling=sampling, shard=i)
    for i in range(count)
  ]
  chosen = 0
  for shard in shards:
    shard.load(tmp_path, [manifest], count)
    rewards = shard.sample(200)[0]['reward']
    near = np.isin(rewards, data['reward']).any(1)
    chosen += near.mean() > 0.95
  assert chosen == 1


def test_old_saves_and_errors(tmp_path):
  replay, envs = make(**OPTIONS), Envs(3)
  for _ in range(50):
    replay.add(envs.step())
  ids = replay.sample(2)[1]
  replay.prioritize(ids, np.ones(ids.shape, np.float32))  # Ignored.
  manifest = save(replay, tmp_path)
  other = make(**OPTIONS, sampling=Sampling(0.5, 0.5, 0))
  other.load(tmp_path, [manifest])
  assert len(other) == len(replay)
  again = save(other, tmp_path)
  kinds = [file['kind'] for file in again['files']]
  assert kinds.count('priorities') == 1
  replay.load(tmp_path, [again])  # The reverse.
  save(other, tmp_path)
  other.prune(tmp_path, [])
  assert len(list(tmp_path.rglob('priorities-*'))) == 1
  with pytest.raises(ValueError, match='priorities for'):
    other.prioritize(ids, np.ones(3, np.float32))
