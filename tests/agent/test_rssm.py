"""The observation scan against one slow step after another in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer_tpu.agent.rssm import RSSM
from tests.agent import golden

BATCH, STEPS, TOKENS, ACTIONS = 3, 7, 6, 4


class SlowRSSM:
  """Section 'RSSM' of the algorithm, one sequence and one step at a time."""

  def __init__(self, params, config):
    self.p = params
    self.c = config

  def norm(self, x, scale):
    return x / np.sqrt((x**2).mean() + 1e-4) * scale

  def linear(self, p, x):
    return x @ p['kernel'] + p['bias']

  def layer(self, p, x):
    return silu(self.norm(self.linear(p['linear'], x), p['norm']['scale']))

  def blocks(self, p, x):
    """`x` has one row a block."""
    parts = [row @ kernel for row, kernel in zip(x, p['kernel'], strict=True)]
    return np.concatenate(parts) + p['bias']

  def step(self, deter, stoch, action, token, reset):
    p, g = self.p, self.c.blocks
    if reset:
      deter, stoch, action = 0 * deter, 0 * stoch, 0 * action
    action = action / np.maximum(1, np.abs(action))
    shared = np.concatenate(
      [
        self.layer(p['in_deter'], deter),
        self.layer(p['in_stoch'], stoch.ravel()),
        self.layer(p['in_action'], action),
      ]
    )
    x = [np.concatenate([d, shared]) for d in deter.reshape(g, -1)]
    for i in range(self.c.dyn_layers):
      x = self.blocks(p[f'hidden{i}'], x)
      x = silu(self.norm(x, p[f'hidden{i}_norm']['scale'])).reshape(g, -1)
    gates = self.blocks(p['gru'], x).reshape(g, 3, -1)
    r, c, u = (gates[:, i].ravel() for i in range(3))
    u = sigmoid(u - 1)
    deter = u * np.tanh(sigmoid(r) * c) + (1 - u) * deter
    x = np.concatenate([deter, token])
    for i in range(self.c.post_layers):
      x = self.layer(p['post'][f'layer{i}'], x)
    logits = self.linear(p['post_logits'], x)
    probs = np.exp(logits.reshape(self.c.stoch, -1))
    probs /= probs.sum(-1, keepdims=True)
    probs = 0.99 * probs + 0.01 / self.c.classes
    return deter, np.eye(self.c.classes)[probs.argmax(-1)], np.log(probs)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def silu(x):
  return x * sigmoid(x)


@pytest.fixture(scope='module', params=[(1, 1), (2, 2)], ids=str)
def pair(request):
  config = golden.config().rssm
  config.dyn_layers, config.post_layers = request.param
  model = RSSM(
    TOKENS, ACTIONS, config, dtype=jnp.float32, rngs=nnx.Rngs(params=0)
  )
  graph, variables = nnx.split(model, nnx.Param)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: np.array(x + 0.3 * rng.normal(size=x.shape), np.float32),
    nnx.to_pure_dict(variables),
  )
  slow = SlowRSSM(jax.tree.map(np.float64, params), config)
  return nnx.merge(graph, params), slow


def sample(config):
  rng = np.random.default_rng(1)
  eye = np.eye(config.classes, dtype=np.float32)
  state = {
    'deter': np.tanh(rng.normal(size=(BATCH, config.deter))),
    'stoch': eye[rng.integers(0, config.classes, (BATCH, config.stoch))],
  }
  tokens = rng.normal(size=(BATCH, STEPS, TOKENS))
  action = 2 * rng.normal(size=(BATCH, STEPS, ACTIONS))
  reset = np.zeros((BATCH, STEPS), bool)
  reset[0, 0] = reset[1, 3] = reset[2, 5] = reset[2, 6] = True
  f32 = lambda x: x.astype(np.float32)
  state = jax.tree.map(f32, state)
  return state, f32(tokens), f32(action), reset


def test_observe(pair):
  model, slow = pair
  state, tokens, action, reset = sample(slow.c)
  last, states = model.observe(state, tokens, action, reset, None)
  for i in range(BATCH):
    deter, stoch = (np.float64(state[k][i]) for k in ('deter', 'stoch'))
    for t in range(STEPS):
      deter, stoch, logp = slow.step(
        deter, stoch, np.float64(action[i, t]), tokens[i, t], reset[i, t]
      )
      where = f'sequence {i}, step {t}'
      np.testing.assert_allclose(
        states['deter'][i, t], deter, atol=2e-5, err_msg=where
      )
      np.testing.assert_allclose(
        states['logp'][i, t], logp, atol=2e-4, err_msg=where
      )
      np.testing.assert_allclose(
        states['stoch'][i, t], stoch, atol=1e-6, err_msg=where
      )
    np.testing.assert_allclose(last['deter'][i], deter, atol=2e-5)


def test_nothing_passes_a_reset(pair):
  model, slow = pair
  state, tokens, action, reset = sample(slow.c)
  reset[:] = False
  reset[:, 4] = True
  key = jax.random.key(0)
  _, states = model.observe(state, tokens, action, reset, key)
  changed = jax.tree.map(lambda x: x[::-1].copy(), state)
  tokens[:, :4] += 1
  action[:, :5] -= 1
  _, others = model.observe(changed, tokens, action, reset, key)
  for name in ('deter', 'logp', 'stoch'):
    apart = np.asarray(states[name] != others[name])
    assert not apart[:, 4:].any(), name
    assert name == 'stoch' or apart[:, :4].any(), name
