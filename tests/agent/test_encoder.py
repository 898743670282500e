"""Tests the size of tokens and the errors for unsuitable images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer_tpu.agent import encoder
from dreamer_tpu.agent.spaces import Space
from dreamer_tpu.errors import UserError
from tests.helpers import golden


def image(height, width, channels=3):
  return Space(shape=(height, width, channels), dtype='uint8')


def make(space_dict):
  config = golden.config().encoder
  return encoder.Encoder(
    space_dict, config, dtype=jnp.float32, rngs=nnx.Rngs(params=0)
  )


@pytest.mark.parametrize(
  ('space_dict', 'size'),
  [
    ({'a': image(48, 48)}, 3 * 3 * 16),
    ({'a': image(64, 96, 1)}, 4 * 6 * 16),
    ({'a': image(64, 64), 'b': image(64, 64, 1)}, 4 * 4 * 16),
    ({'a': Space(shape=(5,), dtype='float32')}, 16),
    ({'a': image(64, 64), 'b': Space(shape=(), dtype='float32')}, 272),
  ],
)
def test_size_of_the_tokens(space_dict, size):
  model = make(space_dict)
  obs = {k: np.zeros((2, 3, *v.shape), v.dtype) for k, v in space_dict.items()}
  shape = jax.eval_shape(model, obs).shape
  assert (model.size, shape) == (size, (2, 3, size))


@pytest.mark.parametrize('size', [(40, 48), (32, 32), (100, 100), (512, 512)])
def test_images_of_unsuitable_size(size):
  with pytest.raises(UserError) as info:
    make({'camera': image(*size)})
  text = str(info.value)
  assert "'camera'" in text
  assert str([*size, 3]) in text
  assert 'multiples of 16 from 48 to 256' in text
  assert '\n' not in text


def test_images_of_different_sizes():
  with pytest.raises(UserError) as info:
    make({'left': image(64, 64), 'right': image(96, 96)})
  assert "'left'" in str(info.value)
  assert "'right'" in str(info.value)


def test_order_of_the_keys_does_not_matter():
  a, b = Space(shape=(2,), dtype='float32'), Space(shape=(), dtype='float32')
  obs = {'a': np.ones((1, 1, 2), np.float32), 'b': np.zeros((1, 1), np.float32)}
  first, second = make({'a': a, 'b': b}), make({'b': b, 'a': a})
  np.testing.assert_array_equal(first(obs), second(dict(reversed(obs.items()))))
