"""Observations that only the encoder or only the decoder uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer_tpu.agent import Agent, Space
from dreamer_tpu.agent.encoder import Encoder
from dreamer_tpu.errors import UserError
from tests.helpers import small


@pytest.fixture(autouse=True, scope='module')
def fast_compilation():
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def make(encoder='.*', decoder='.*', obs_space=small.OBS):
  config = small.config()
  config.encoder['keys'], config.decoder['keys'] = encoder, decoder
  return Agent(obs_space, small.ACT, config)


def test_the_encoder_is_that_of_the_chosen_observations():
  config = small.config().encoder
  kw = dict(dtype=jnp.float32, rngs=nnx.Rngs(params=0))
  chosen = {k: v for k, v in small.OBS.items() if k != 'token'}
  alone = Encoder(chosen, config, **kw)
  config['keys'] = 'image|spe.d'
  kw['rngs'] = nnx.Rngs(params=0)
  encoder = Encoder(small.OBS, config, **kw)
  assert set(encoder.keys) == set(chosen)
  batch = small.make_batch(small.make_agent())
  other = small.make_batch(small.make_agent(), seed=1)
  tokens = encoder(batch)
  np.testing.assert_array_equal(tokens, alone(batch))
  np.testing.assert_array_equal(
    tokens, encoder({**batch, 'token': other['token']})
  )
  assert not np.array_equal(tokens, encoder({**batch, 'speed': other['speed']}))


@pytest.mark.parametrize(
  ('encoder', 'decoder', 'decoded', 'videos'),
  [
    ('.*', '.*', {'image', 'speed', 'token'}, {'image'}),
    ('speed', 'image', {'image'}, {'image'}),
    ('image', 'speed|token|spe', {'speed', 'token'}, set()),
    ('image|token', '', set(), set()),
  ],
)
def test_losses_and_videos_are_those_of_the_decoder(
  encoder, decoder, decoded, videos
):
  agent = make(encoder, decoder)
  state = jax.eval_shape(agent.init, jax.random.key(0))
  assert ('decoder' in state['params']) == bool(decoded)
  carry = agent.initial_carry(small.ROWS)
  batch = small.make_batch(agent)
  assert small.OBS.keys() <= batch.keys()
  _, metrics, shown = jax.eval_shape(
    agent.report, state, carry, batch, jax.random.key(0)
  )
  prefix = 'loss/decoder/'
  named = {k.removeprefix(prefix) for k in metrics if k.startswith(prefix)}
  assert named == decoded
  prefix = 'openloop/'
  named = {k.removeprefix(prefix) for k in shown if k.startswith(prefix)}
  assert named == videos


def test_learning_without_a_decoder():
  """From the rewards and the ends of episodes alone."""
  obs_space = {k: small.OBS[k] for k in ('speed', 'token')}
  agent = make('speed', 'none', obs_space)
  state = jax.jit(agent.init)(jax.random.key(0))
  carry = agent.initial_carry(small.ROWS)
  args = state, carry, small.make_batch(agent), jax.random.key(0)
  _, metrics, _ = jax.jit(agent.report)(*args)
  losses = {
    k.removeprefix('loss/'): float(v)
    for k, v in metrics.items()
    if k.startswith('loss/')
  }
  total, scales = losses.pop('total'), agent.config.loss_scales
  assert set(losses) == set(scales) - {'decoder'}
  expected = sum(scales[k] * v for k, v in losses.items())
  assert total == pytest.approx(expected, rel=1e-5)
  new, _, _, metrics = jax.eval_shape(agent.train, *args)
  assert jax.tree.structure(new) == jax.tree.structure(state)
  assert 'opt/update_rms/encoder' in metrics
  assert 'opt/update_rms/decoder' not in metrics


def test_nothing_to_read_is_one_line():
  with pytest.raises(UserError) as error:
    make('imag')
  text = str(error.value)
  for part in ("agent.encoder.keys='imag'", 'image, speed, token'):
    assert part in text
  assert '\n' not in text
  assert not hasattr(error.value, '__notes__')


def test_images_have_one_size_where_they_are_used():
  obs_space = {
    'near': Space(shape=(12, 12, 3), dtype='uint8'),
    'far': Space(shape=(16, 24, 1), dtype='uint8'),
  }
  make('near', 'far', obs_space)
  with pytest.raises(UserError, match=r'decoder.*agent\.decoder\.keys'):
    make('near', '.*', obs_space)
  with pytest.raises(UserError, match=r"encoder.*'far' \[16, 24, 1\]"):
    make('.*', 'far', obs_space)
