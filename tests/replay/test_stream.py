"""Streams of batches cut from sequences."""

import json

import numpy as np
import pytest

from dreamer_tpu.errors import UserError
from dreamer_tpu.replay import Stream
from tests.helpers.replay_model import Envs, assert_same, make
from tests.helpers.saved_replay import save


def filled(length, steps=60, **kwargs):
  replay = make(length=length, **kwargs)
  envs = Envs(3)
  for i in range(steps):
    # Every seventh step abandons all episodes for new ones.
    replay.add(envs.step(restart=i % 7 == 0))
  return replay, envs


@pytest.mark.parametrize('context', [0, 1, 3])
def test_parts_equal_slices_of_the_sequence(context):
  # Equal seeds draw equal sequences, in parts and as a whole.
  length = context + 4 * 3
  replay, _ = filled(length, seed=5)
  whole, _ = filled(length, seed=5)
  stream = Stream(replay, batch=6, length=4, context=context, consec=3)
  for _ in range(4):
    data, stepid = whole.sample(6)
    for part in range(3):
      window = slice(part * 4, part * 4 + context + 4)
      batch, ids = next(stream)
      consec = batch.pop('consec')
      assert consec.dtype == np.int32
      assert consec.tolist() == [part] * 6
      assert (ids == stepid[:, window]).all()
      assert ids.flags.c_contiguous
      assert_same(
        batch, {key: value[:, window].copy() for key, value in data.items()}
      )


def test_one_part_is_the_sequence():
  replay, _ = filled(5, seed=1)
  other, _ = filled(5, seed=1)
  batch, ids = next(Stream(replay, batch=4, length=4, context=1))
  data, stepid = other.sample(4)
  assert batch.pop('consec').tolist() == [0] * 4
  assert_same(batch, data)
  assert (ids == stepid).all()


def test_shorter_parts_than_the_sequence():
  replay, _ = filled(9)
  stream = Stream(replay, batch=2, length=3, context=1, consec=2)
  shapes = {next(stream)[1].shape for _ in range(5)}
  assert shapes == {(2, 4)}
  with pytest.raises(UserError, match='need sequences of 10 steps'):
    Stream(replay, batch=2, length=3, context=1, consec=3)


def test_starts_over_if_a_sequence_was_dropped():
  replay, envs = filled(9, capacity=120, chunksize=8)
  stream = Stream(replay, batch=64, length=4, context=1, consec=2)
  assert (next(stream)[0]['consec'] == 0).all()
  for _ in range(30):
    replay.add(envs.step())
  assert (next(stream)[0]['consec'] == 0).all()
  assert (next(stream)[0]['consec'] == 1).all()


def test_later_parts_have_latents_updated_in_between():
  replay, _ = filled(9)
  stream = Stream(replay, batch=1, length=4, context=1, consec=2)
  _, ids = next(stream)
  value = np.full((1, 1, 3), 77, np.uint8)
  replay.update(ids[:, 4:5], {'latent/stoch': value})
  data, _ = next(stream)
  assert (data['latent/stoch'][0, 0] == 77).all()


@pytest.mark.parametrize('seed', [None, 3])
def test_a_resumed_stream_yields_identical_batches(tmp_path, seed):
  replay, _ = filled(9)
  options = dict(batch=4, length=4, context=1, consec=2, seed=seed)
  stream = Stream(replay, **options)
  for _ in range(3):
    next(stream)
  state = json.loads(json.dumps(stream.state()))
  manifest = save(replay, tmp_path)
  other = make(length=9, seed=99)
  other.load(tmp_path, [manifest])
  resumed = Stream(other, **options)
  resumed.load(state)
  for _ in range(5):
    one, two = next(stream), next(resumed)
    assert_same(one[0], two[0])
    assert (one[1] == two[1]).all()


def test_separate_generators_do_not_affect_each_other():
  one, _ = filled(5)
  two, _ = filled(5)
  report = Stream(one, batch=3, length=4, context=1, online=False, seed=8)
  for _ in range(5):
    next(report)
    assert (one.sample(4)[1] == two.sample(4)[1]).all()
