"""Any sequence of operations, compared with a slow model of the replay."""

import copy
import json
import math
import shutil
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
  RuleBasedStateMachine,
  initialize,
  invariant,
  precondition,
  rule,
)

from dreamer_tpu.replay import ImportWriter, Sampling, saved_streams
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
from tests.helpers.saved_replay import files_under, stored_streams

SAMPLINGS = [
  Sampling(),
  Sampling(0, 1, 0, zero_on_sample=False, initial=2.0),
  Sampling(0.5, 0, 0.5),
  Sampling(0.25, 0.5, 0.25, zero_on_sample=False, initial=2.0),
]


class Machine(RuleBasedStateMachine):
  """A replay, its model, and what was saved of both."""

  def __init__(self):
    super().__init__()
    self.folder = tempfile.mkdtemp()
    self.saves = []  # Manifests with copies of the model, at most two.
    self.unwritten = None  # Snapshot with a copy of the model.
    self.seen = np.zeros((0, 1), np.int64)  # Addresses of the last sample.
    self.resumed = False

  def teardown(self):
    shutil.rmtree(self.folder)

  @initialize(
    streams=st.integers(1, 3),
    length=st.integers(1, 6),
    chunksize=st.integers(1, 9),
    room=st.integers(0, 30),
    imported=st.integers(0, 25),
    keep=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    online=st.booleans(),
    sampling=st.sampled_from(SAMPLINGS),
    seed=st.integers(0, 2**20),
  )
  def begin(
    self,
    streams,
    length,
    chunksize,
    room,
    imported,
    keep,
    online,
    sampling,
    seed,
  ):
    capacity = streams * (length + 2 * chunksize) + room + imported
    self.options = dict(
      length=length, capacity=capacity, chunksize=chunksize, streams=streams
    )
    self.extra = dict(online=online, sampling=sampling, keep_imported=keep)
    self.rng = np.random.default_rng(seed)
    self.envs = Envs(streams, seed)
    self.model = Model(**self.options, keep=keep > 0)
    self.replay = make(**self.options, **self.extra)
    if imported:
      self.start_from_elsewhere(imported)

  def start_from_elsewhere(self, steps):
    writer = ImportWriter(
      SPEC,
      self.folder,
      length=self.options['length'],
      chunksize=self.options['chunksize'],
    )
    others = Envs(1, seed=int(self.rng.integers(1000)))
    episodes = []
    while writer.steps < steps:
      count = int(self.rng.integers(1, 1 + min(9, steps - writer.steps)))
      rows = [others.step(restart=i == 0) for i in range(count)]
      episodes.append({k: np.concatenate([x[k] for x in rows]) for k in SPEC})
      writer.add(episodes[-1])
    self.model.add_imported(
      {k: np.concatenate([x[k] for x in episodes]) for k in SPEC}
    )
    self.replay.load(self.folder, [json.loads(json.dumps(writer.finish()))])
    self.resumed = True

  def next_step(self, restart):
    step = self.envs.step(restart)
    if self.resumed and not step['is_first'].all():
      self.model.restart()
    self.resumed = False
    self.model.add(step)
    return step

  @rule(restart=st.booleans(), count=st.integers(1, 9))
  def add(self, restart, count):
    for i in range(count):
      self.replay.add(self.next_step(restart and i == 0))

  @rule(restart=st.booleans(), count=st.integers(1, 40))
  def extend(self, restart, count):
    steps = [self.next_step(restart and i == 0) for i in range(count)]
    self.replay.extend({k: np.stack([x[k] for x in steps]) for k in SPEC})

  @precondition(lambda self: len(self.replay))
  @rule(batch=st.integers(1, 8), online=st.booleans())
  def sample(self, batch, online):
    model, sequences = self.model, self.model.sequences()
    data, self.seen = self.replay.sample(batch, online=online)
    for i, ids in enumerate(self.seen.tolist()):
      assert ids == sequences[ids[0]]
      assert_same({k: v[i] for k, v in data.items()}, model.expect(ids))
    starts = self.seen[:, 0].tolist()
    kept = 0
    if model.keep:
      kept = sum(start in model.imported for start in starts)
      share = batch * self.extra['keep_imported']
      if sequences.keys() <= model.imported:
        share = batch
      elif not sequences.keys() & model.imported:
        share = 0
      assert math.floor(share) <= kept <= math.ceil(share)
    if online and self.extra['online']:
      drawn = model.queue[: batch - kept]
      assert starts[: len(drawn)] == drawn
      del model.queue[: len(drawn)]

  @precondition(lambda self: len(self.replay))
  @rule(offset=st.integers(0, 3), steps=st.integers(1, 3))
  def gather(self, offset, steps):
    if not self.seen.size or offset + steps > self.model.length:
      return
    found = self.replay.gather(self.seen[:, 0], offset, steps)
    stored = [ids[0] in self.model.steps for ids in self.seen.tolist()]
    assert (found is None) == (not all(stored))
    if found is not None:
      assert (found[1] == self.seen[:, offset : offset + steps]).all()
      latents = [k for k in SPEC if k.startswith('latent/')]
      for i, ids in enumerate(found[1].tolist()):
        expected = self.model.expect(ids)
        for key in latents:
          assert found[0][key][i].tobytes() == expected[key].tobytes()

  def addresses(self):
    """Returns addresses, stored or not, of several shapes."""
    if self.seen.size and self.rng.random() < 0.5:
      return self.seen
    top = self.model.serial * self.model.chunksize
    start = int(self.rng.integers(-5, top + 5))
    if self.rng.random() < 0.5:
      return start + np.arange(int(self.rng.integers(0, 20)))
    return self.rng.integers(-5, top + 5, (3, 2))

  @rule()
  def update(self):
    ids = self.addresses()
    values = fresh_latents(ids.shape, self.rng)
    if self.rng.random() < 0.3:
      values.pop('latent/deter')
    self.replay.update(ids, values)
    self.model.update(ids, values)

  @rule()
  def prioritize(self):
    ids = self.addresses()
    values = self.rng.exponential(size=ids.shape).astype(np.float32)
    self.replay.prioritize(ids, values)
    self.model.prioritize(ids, values)

  @precondition(lambda self: self.replay.length and self.extra['sampling'][1])
  @rule()
  def compare_priorities(self):
    initial = self.extra['sampling'].initial
    found = {
      serial * self.model.chunksize + row: float(value)
      for serial, values in self.replay._store.priorities().items()
      for row, value in enumerate(values)
    }
    assert found == {
      address: self.model.priorities.get(address, initial)
      for address in self.model.steps
    }

  @precondition(
    lambda self: len(self.replay) and self.extra['sampling'] == SAMPLINGS[1]
  )
  @rule(chosen=st.integers(0, 2**20))
  def only_one_step_has_a_priority(self, chosen):
    model, sequences = self.model, self.model.sequences()
    addresses = sorted(model.steps)
    target = addresses[chosen % len(addresses)]
    for ids, value in ((addresses, 0.0), ([target], 1.0)):
      values = np.full(len(ids), value, np.float32)
      self.replay.prioritize(np.array(ids), values)
      model.prioritize(np.array(ids), values)
    starts = self.replay.sample(9, online=False)[1][:, 0].tolist()
    # Kept steps and others are drawn from separately.
    pool, drawn = (
      {x for x in found if (x in model.imported) == (target in model.imported)}
      if model.keep
      else set(found)
      for found in (sequences, starts)
    )
    holding = {start for start in pool if target in sequences[start]}
    assert drawn <= (holding or pool)

  @rule()
  def freeze(self):
    if self.unwritten is None:
      snapshot = self.replay.snapshot(self.folder)
      self.unwritten = snapshot, copy.deepcopy((self.model, self.resumed))

  @precondition(lambda self: self.unwritten)
  @rule(discard=st.booleans())
  def write(self, discard):
    snapshot, model = self.unwritten
    self.unwritten = None
    if discard:
      snapshot.discard()
      return
    manifest = json.loads(json.dumps(snapshot.write()))
    self.saves = [*self.saves, (manifest, model)][-2:]
    manifests = [manifest for manifest, _ in self.saves]
    self.replay.prune(self.folder, manifests)
    named = {file['name'] for x in manifests for file in x['files']}
    assert named <= files_under(self.folder)

  @precondition(lambda self: self.saves and not self.unwritten)
  @rule(previous=st.booleans(), seed=st.integers(0, 9))
  def load(self, previous, seed):
    index = 0 if previous else -1
    manifest, (model, _) = self.saves[index]
    self.saves = [self.saves[index]]
    self.model = copy.deepcopy(model)
    self.replay = make(**self.options, **self.extra, seed=seed)
    assert self.replay.load(self.folder, [manifest])
    streams = [list(x) for x in saved_streams(self.folder, [manifest])]
    for found, stored in zip(streams, stored_streams(self.replay), strict=True):
      for one, two in zip(found, stored, strict=True):
        assert_same(one, {k: two[k] for k in one})
        assert one.keys() == {k for k in SPEC if not k.startswith('latent/')}
    self.resumed = True
    # Addresses of a later time belong to other steps now, or to none.
    self.seen = self.seen[:0]

  @precondition(lambda self: self.saves and not self.unwritten)
  @rule(count=st.integers(1, 3), chunksize=st.integers(1, 9))
  def load_in_shards(self, count, chunksize):
    manifest, (model, _) = self.saves[-1]
    options = self.options | dict(
      chunksize=chunksize, capacity=2000, online=False
    )
    shards = [make(**options, keep_imported=0.5, shard=i) for i in range(count)]
    for shard in shards:
      shard.load(self.folder, [manifest], count)
    imported = [shard.stats()['imported'] for shard in shards]
    stored = model.imported & model.steps.keys()
    assert sum(imported) == len(stored)
    assert max(imported) - min(imported) <= 1
    found = sorted(
      b''.join(x[key][i].tobytes() for key in SPEC)
      for shard in shards
      for chunks in stored_streams(shard)
      for x in chunks
      for i in range(len(x['reward']))
    )
    assert found == sorted(
      b''.join(row[key].tobytes() for key in SPEC)
      for row in model.steps.values()
    )
    lost = len(model.sequences()) - sum(map(len, shards))
    # A cut of an imported stream loses the sequences that cross it.
    cuts = (count - 1) * bool(stored)
    assert 0 <= lost <= cuts * (model.length - 1)

  @invariant()
  def equals_the_model(self):
    if hasattr(self, 'model'):
      check_all(self.replay, self.model)
      stored = self.model.imported & self.model.steps.keys()
      assert self.replay.stats()['imported'] == len(stored)


@pytest.mark.parametrize(
  'examples', [60, pytest.param(1500, marks=pytest.mark.slow)]
)
def test_any_operations(examples, monkeypatch):
  # Tiny files, so that there are many.
  monkeypatch.setattr(ledger, 'FILE_BYTES', 500)
  monkeypatch.setattr('os.fsync', lambda handle: None)
  machine = Machine.TestCase()
  machine.settings = settings(
    max_examples=examples,
    stateful_step_count=40,
    deadline=None,
    derandomize=examples < 100,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
  )
  machine.runTest()
