"""Errors for spaces that the agent does not support."""

import numpy as np
import pytest

from dreamer_tpu.agent import spaces
from dreamer_tpu.agent.spaces import Space
from dreamer_tpu.errors import UserError

IMAGE = Space(shape=(64, 64, 3), dtype='uint8')
VECTOR = Space(shape=(3,), dtype='float32')
CHOICE = Space(shape=(), dtype='int32', classes=4)


def message(obs, act):
  with pytest.raises(UserError) as info:
    spaces.check(obs, act)
  text = str(info.value)
  assert '\n' not in text
  return text


def test_every_kind_is_accepted():
  many = Space(shape=(2,), dtype='int32', classes=3)
  matrix = Space(shape=(2, 3), dtype='float32')
  obs = {'a': IMAGE, 'b': VECTOR, 'c': CHOICE, 'd': many, 'e': matrix}
  spaces.check(obs, {'x': VECTOR, 'y': CHOICE, 'z': many})


def test_empty_spaces():
  assert 'observation' in message({}, {'action': VECTOR})
  assert 'action' in message({'a': VECTOR}, {})


@pytest.mark.parametrize('key', ['reward', 'is_first', 'is_last', 'action'])
def test_reserved_names(key):
  text = message({key: VECTOR}, {'action': VECTOR})
  assert f"'{key}'" in text
  assert 'rename' in text


@pytest.mark.parametrize(
  'space',
  [
    Space(shape=(64, 64, 3), dtype='float32'),
    Space(shape=(4, 64, 64, 3), dtype='uint8'),
  ],
)
def test_observations_of_unknown_rank(space):
  text = message({'depth': space}, {'action': VECTOR})
  assert "'depth'" in text
  assert str(list(space.shape)) in text


@pytest.mark.parametrize(
  'space',
  [
    Space(shape=(2, 2), dtype='float32'),
    Space(shape=(2,), dtype='int32'),
    Space(shape=(), dtype='float32', classes=3),
  ],
)
def test_actions_that_no_head_can_take(space):
  text = message({'a': VECTOR}, {'grip': space})
  assert "'grip'" in text
  assert 'categorical' in text


def test_concat_sorts_keys_and_makes_integers_one_hot():
  act = {'turn': CHOICE, 'gas': VECTOR}
  arrays = {
    'turn': np.array([[1, 3]]),
    'gas': np.arange(6, dtype=np.float32).reshape(1, 2, 3),
  }
  expected = [[[0, 1, 2, 0, 1, 0, 0], [3, 4, 5, 0, 0, 0, 1]]]
  np.testing.assert_array_equal(spaces.concat(act, arrays), expected)


def test_flatten_of_several_integers():
  space = Space(shape=(2,), dtype='int32', classes=3)
  assert space.size == 6
  flat = spaces.features(space, np.array([[2, 0]]))
  np.testing.assert_array_equal(flat, [[0, 0, 1, 1, 0, 0]])
