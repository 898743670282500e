"""Slow reference implementation of the replay."""

import ml_dtypes
import numpy as np

from dreamer_tpu.replay import Replay

BF16 = ml_dtypes.bfloat16

SPEC = {
  'image': ((3, 2, 1), 'uint8'),
  'vector': ((2,), 'float32'),
  'reward': ((), 'float32'),
  'is_first': ((), 'bool'),
  'is_last': ((), 'bool'),
  'is_terminal': ((), 'bool'),
  'action': ((), 'int32'),
  'latent/deter': ((5,), 'bfloat16'),
  'latent/stoch': ((3,), 'uint8'),
}


def make(**kwargs):
  """Returns a small replay."""
  options = dict(
    length=5, capacity=200, chunksize=7, online=False, streams=3, seed=0
  )
  return Replay(SPEC, **options | kwargs)


class Envs:
  """Environments whose steps are random and all different."""

  def __init__(self, width, seed=0, mean_length=9):
    self._rng = np.random.default_rng(seed)
    self._width = width
    self._mean = mean_length
    self._last = np.ones(width, bool)

  def step(self, restart=False):
    rng, n = self._rng, self._width
    first = np.ones(n, bool) if restart else self._last
    last = rng.random(n) < 1 / self._mean
    self._last = last
    return {
      'image': rng.integers(0, 256, (n, 3, 2, 1), np.uint8),
      'vector': rng.normal(size=(n, 2)).astype(np.float32),
      'reward': rng.normal(size=n).astype(np.float32),
      'is_first': first.copy(),
      'is_last': last.copy(),
      'is_terminal': last & (rng.random(n) < 0.5),
      'action': rng.integers(0, 9, n, np.int32),
      'latent/deter': rng.normal(size=(n, 5)).astype(BF16),
      'latent/stoch': rng.integers(0, 256, (n, 3), np.uint8),
    }


def fresh_latents(shape, rng):
  """Returns random latents for addresses of a given shape."""
  return {
    'latent/deter': rng.normal(size=(*shape, 5)).astype(BF16),
    'latent/stoch': rng.integers(0, 256, (*shape, 3), np.uint8),
  }


class Model:
  """Reference replay: a dict of steps and lists of addresses.

  Attributes:
    steps: Arrays of each step by address.
    priorities: Priorities that were set, by address.
    imported: Addresses of all imported steps.
    queue: Starts that `Replay(online=True)` draws first.
  """

  def __init__(self, length, capacity, chunksize, streams, keep=False):
    self.length = length
    self.capacity = capacity
    self.chunksize = chunksize
    self.keep = keep
    self.steps = {}
    self.priorities = {}
    self.imported = set()
    self.queue = []
    self.chunks = []
    self.old = []
    self.streams = [[] for _ in range(streams)]
    self.serials = [None] * streams
    self.count = 0
    self.serial = 0

  def add(self, step):
    width = len(self.streams)
    while len(self.steps) + width > self.capacity:
      for address in self.chunks.pop(0):
        del self.steps[address]
        self.priorities.pop(address, None)
    if self.count % self.chunksize == 0:
      for i in range(width):
        self.serials[i] = self.serial
        self.serial += 1
        self.chunks.append([])
    for i, serial in enumerate(self.serials):
      address = serial * self.chunksize + self.count % self.chunksize
      # The open chunks are the newest, in the order of streams.
      chunk = self.chunks[i - width]
      chunk.append(address)
      self.streams[i].append(address)
      self.steps[address] = {
        key: np.array(value[i]) for key, value in step.items()
      }
    self.count += 1
    if self.count % self.length == 0:
      starts = [stream[-self.length] for stream in self.streams]
      self.queue += [start for start in starts if start in self.steps]
    self.queue = [start for start in self.queue if start in self.steps]

  def add_imported(self, steps):
    """Adds a stream, arrays [T, ...], before all others."""
    stream = []
    for row in range(len(steps['is_first'])):
      address = self.serial * self.chunksize + row % self.chunksize
      if row % self.chunksize == 0:
        chunk = []
        if not self.keep:
          self.chunks.append(chunk)
      chunk.append(address)
      stream.append(address)
      self.steps[address] = {k: np.array(v[row]) for k, v in steps.items()}
      self.serial += row % self.chunksize == self.chunksize - 1
    self.serial += len(stream) % self.chunksize > 0
    self.imported |= set(stream)
    self.old.append(stream)

  def restart(self):
    """Ends all streams and begins new ones."""
    self.old += self.streams
    self.streams = [[] for _ in self.streams]
    self.count = 0

  def update(self, stepid, values):
    for index in np.ndindex(stepid.shape):
      step = self.steps.get(int(stepid[index]))
      if step is not None:
        step.update({k: np.array(v[index]) for k, v in values.items()})

  def prioritize(self, stepid, values):
    for index in np.ndindex(stepid.shape):
      if int(stepid[index]) in self.steps:
        self.priorities[int(stepid[index])] = float(values[index])

  def sequences(self):
    """Returns {start: addresses} of all complete sequences."""
    found = {}
    for stream in self.old + self.streams:
      live = [address for address in stream if address in self.steps]
      for i in range(len(live) - self.length + 1):
        found[live[i]] = live[i : i + self.length]
    return found

  def expect(self, addresses):
    """Returns the arrays that a sample of these addresses must have."""
    rows = [self.steps[address] for address in addresses]
    data = {key: np.stack([row[key] for row in rows]) for key in SPEC}
    for t in range(len(rows) - 1):
      if data['is_first'][t + 1]:
        data['is_last'][t] = True
    data['is_first'][0] = True
    return data


def assert_same(one, two):
  """Checks that two dicts of arrays are bitwise equal, types included."""
  assert one.keys() == two.keys()
  for key in one:
    assert one[key].dtype == two[key].dtype, key
    assert one[key].shape == two[key].shape, key
    assert one[key].tobytes() == two[key].tobytes(), key


def check_all(replay, model):
  """Checks every sequence of a replay against the model."""
  sequences = model.sequences()
  assert len(replay) == len(sequences)
  assert replay.stats()['steps'] == len(model.steps)
  if not sequences:
    return
  starts = np.array(list(sequences), np.int64)
  data, stepid = replay.gather(starts, 0, model.length)
  for i, addresses in enumerate(sequences.values()):
    assert stepid[i].tolist() == addresses
    row = {key: value[i] for key, value in data.items()}
    assert_same(row, model.expect(addresses))
