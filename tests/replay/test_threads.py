"""Threads insert, sample, write back and save at the same time."""

import concurrent.futures
import itertools
import threading
import zlib

import numpy as np
import pytest

from dreamer_tpu.replay import Replay, Sampling
from tests.helpers.saved_replay import save, stored_streams

WIDTH, LENGTH = 4, 6
SPEC = {
  'writer': ((), 'int32'),
  'count': ((), 'int64'),
  'image': ((24, 8), 'uint8'),
  'is_first': ((), 'bool'),
  'is_last': ((), 'bool'),
  'latent/version': ((), 'int64'),
  'latent/image': ((24, 8), 'uint8'),
}


def image(*identity):
  """Returns pixels that belong to one step only."""
  seed = zlib.crc32(repr(tuple(map(int, identity))).encode())
  return np.random.default_rng(seed).integers(0, 256, (24, 8), np.uint8)


def step(writer, count):
  """Returns the step number `count` of a writing thread, for all streams."""
  images = [image(writer, count, stream, 0) for stream in range(WIDTH)]
  return {
    'writer': np.full(WIDTH, writer, np.int32),
    'count': np.full(WIDTH, count),
    'image': np.stack(images),
    'is_first': np.full(WIDTH, count == 0),
    'is_last': np.zeros(WIDTH, bool),
    'latent/version': np.zeros(WIDTH, np.int64),
    'latent/image': np.stack(images),
  }


def check(data, ids):
  """Checks that no step is torn, and that steps are in order."""
  for row in range(len(ids)):
    streams = set(range(WIDTH))
    for t in range(ids.shape[1]):
      writer, count = data['writer'][row, t], data['count'][row, t]
      version = data['latent/version'][row, t]
      pixels, latent = data['image'][row, t], data['latent/image'][row, t]
      streams = {
        stream
        for stream in streams
        if (pixels == image(writer, count, stream, 0)).all()
        and (latent == image(writer, count, stream, version)).all()
      }
    assert len(streams) == 1
    for writer in set(data['writer'][row].tolist()):
      counts = data['count'][row][data['writer'][row] == writer]
      assert (np.diff(counts) == 1).all()


def make(shares, capacity):
  return Replay(
    SPEC,
    length=LENGTH,
    capacity=capacity,
    chunksize=16,
    online=True,
    streams=WIDTH,
    seed=0,
    sampling=Sampling(**shares),
  )


@pytest.mark.parametrize(
  ('rounds', 'capacity'),
  [
    (60, 400),
    (60, 10_000),
    pytest.param(3000, 4000, marks=pytest.mark.slow),
  ],
)
def test_eight_insert_and_four_sample(rounds, capacity, tmp_path):
  replay = make(dict(uniform=0.4, priority=0.3, recency=0.3), capacity)
  inserted, version = threading.Event(), itertools.count(1)

  def insert(writer):
    for count in range(0, rounds, 3):
      replay.add(step(writer, count))
      two = [step(writer, count + 1), step(writer, count + 2)]
      replay.extend({k: np.stack([x[k] for x in two]) for k in SPEC})

  def sample():
    done = 0
    while not inserted.is_set() or not done:
      if not len(replay):
        continue
      data, ids = replay.sample(3)
      check(data, ids)
      # Other threads may have dropped these steps, or written to them.
      number = next(version)
      fresh = np.array(
        [
          image(writer, count, stream, number)
          for writer, count, stream in zip(
            data['writer'].flat, data['count'].flat, streams(data), strict=True
          )
        ]
      )
      values = {
        'latent/version': np.full(ids.shape, number),
        'latent/image': fresh.reshape(*ids.shape, 24, 8),
      }
      replay.update(ids, values)
      replay.prioritize(ids, np.ones(ids.shape, np.float32))
      done += 1
    return done

  def store():
    while not inserted.is_set():
      manifest = save(replay, tmp_path)
      other = make(dict(uniform=1.0), capacity)
      other.load(tmp_path, [manifest])
      if len(other):
        check(*other.sample(20))

  with concurrent.futures.ThreadPoolExecutor(13) as pool:
    samplers = [pool.submit(sample) for _ in range(4)]
    saver = pool.submit(store)
    try:
      for future in [pool.submit(insert, writer) for writer in range(8)]:
        future.result()
    finally:
      inserted.set()
    assert all(future.result() for future in samplers)
    saver.result()

  # The threads took turns within the calls of `add` and `extend` only.
  for chunks in stored_streams(replay):
    steps = {k: np.concatenate([x[k] for x in chunks]) for k in SPEC}
    for writer in range(8):
      counts = steps['count'][steps['writer'] == writer]
      assert (np.diff(counts) == 1).all()
      if capacity > 8 * rounds * WIDTH:
        assert len(counts) == rounds


def streams(data):
  """Yields the stream of each sampled step."""
  for index in np.ndindex(data['writer'].shape):
    identity = data['writer'][index], data['count'][index]
    yield next(
      stream
      for stream in range(WIDTH)
      if (data['image'][index] == image(*identity, stream, 0)).all()
    )
