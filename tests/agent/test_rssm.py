"""The observation scan against one slow step after another in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer_tpu.agent.ops import backend
from dreamer_tpu.agent.rssm import RSSM
from tests.helpers import golden, small

BATCH, STEPS, TOKENS, ACTIONS = 3, 7, 6, 4


class SlowRSSM:
  """Section 'RSSM' of the algorithm, one sequence and one step at a time.

  In NumPy, or in JAX where plain differentiation goes through it.
  """

  def __init__(self, params, config, xp=np):
    self.p = params
    self.c = config
    self.xp = xp

  def norm(self, x, scale):
    return x / self.xp.sqrt((x**2).mean() + 1e-4) * scale

  def linear(self, p, x):
    return x @ p['kernel'] + p['bias']

  def layer(self, p, x):
    x = self.norm(self.linear(p['linear'], x), p['norm']['scale'])
    return self.silu(x)

  def blocks(self, p, x):
    """`x` has one row a block."""
    parts = [row @ kernel for row, kernel in zip(x, p['kernel'], strict=True)]
    return self.xp.concatenate(parts) + p['bias']

  def step(self, deter, stoch, action, token, reset):
    p, g, xp = self.p, self.c.blocks, self.xp
    if reset:
      deter, stoch, action = 0 * deter, 0 * stoch, 0 * action
    stop = jax.lax.stop_gradient if xp is jnp else lambda x: x
    action = action / stop(xp.maximum(1, abs(action)))
    shared = xp.concatenate(
      [
        self.layer(p['in_deter'], deter),
        self.layer(p['in_stoch'], stoch.ravel()),
        self.layer(p['in_action'], action),
      ]
    )
    x = [xp.concatenate([d, shared]) for d in deter.reshape(g, -1)]
    for i in range(self.c.dyn_layers):
      x = self.blocks(p[f'hidden{i}'], x)
      x = self.silu(self.norm(x, p[f'hidden{i}_norm']['scale'])).reshape(g, -1)
    gates = self.blocks(p['gru'], x).reshape(g, 3, -1)
    r, c, u = (gates[:, i].ravel() for i in range(3))
    u = self.sigmoid(u - 1)
    deter = u * xp.tanh(self.sigmoid(r) * c) + (1 - u) * deter
    x = xp.concatenate([deter, token])
    for i in range(self.c.post_layers):
      x = self.layer(p['post'][f'layer{i}'], x)
    logits = self.linear(p['post_logits'], x)
    probs = xp.exp(logits.reshape(self.c.stoch, -1))
    probs /= probs.sum(-1, keepdims=True)
    probs = 0.99 * probs + 0.01 / self.c.classes
    stoch = xp.eye(self.c.classes)[probs.argmax(-1)]
    return deter, stoch + probs - stop(probs), xp.log(probs)

  def sigmoid(self, x):
    return 1 / (1 + self.xp.exp(-x))

  def silu(self, x):
    return x * self.sigmoid(x)


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
  post = model.observe(state, tokens, action, reset, None)
  for i in range(BATCH):
    deter, stoch = (np.float64(state[k][i]) for k in ('deter', 'stoch'))
    for t in range(STEPS):
      deter, stoch, logp = slow.step(
        deter, stoch, np.float64(action[i, t]), tokens[i, t], reset[i, t]
      )
      where = f'sequence {i}, step {t}'
      np.testing.assert_allclose(
        post.deter[i, t], deter, atol=2e-5, err_msg=where
      )
      np.testing.assert_allclose(
        post.dist.logp[i, t], logp, atol=2e-4, err_msg=where
      )
      np.testing.assert_allclose(
        post.stoch[i, t], stoch, atol=1e-6, err_msg=where
      )


def test_nothing_passes_a_reset(pair):
  model, slow = pair
  state, tokens, action, reset = sample(slow.c)
  reset[:] = False
  reset[:, 4] = True
  key = jax.random.key(0)
  post = model.observe(state, tokens, action, reset, key)
  changed = jax.tree.map(lambda x: x[::-1].copy(), state)
  tokens[:, :4] += 1
  action[:, :5] -= 1
  others = model.observe(changed, tokens, action, reset, key)
  for name in ('deter', 'index', 'dist'):
    a, b = (jax.tree.leaves(getattr(x, name))[0] for x in (post, others))
    apart = np.asarray(a != b)
    assert not apart[:, 4:].any(), name
    assert name == 'index' or apart[:, :4].any(), name


@pytest.mark.parametrize('form', backend.Form)
def test_gradients_are_those_of_plain_differentiation(pair, form):
  """Gradients of parameters, first state, tokens and actions."""
  model, slow = pair
  state, tokens, action, reset = sample(slow.c)
  graph, variables = nnx.split(model, nnx.Param)
  params = nnx.to_pure_dict(variables)
  weights = [
    np.random.default_rng(i).normal(size=(BATCH, STEPS, *shape))
    for i, shape in enumerate(
      [(slow.c.deter,), *2 * [(slow.c.stoch, slow.c.classes)]]
    )
  ]

  def loss(states):
    return sum((w * x).sum() for w, x in zip(weights, states, strict=True))

  def fast_loss(params, state, tokens, action):
    model = nnx.merge(graph, params)
    post = model.observe(state, tokens, action, reset, None)
    return loss([post.deter, post.stoch, post.dist.logp])

  def slow_loss(params, state, tokens, action):
    rssm = SlowRSSM(params, slow.c, jnp)
    rows = []
    for i in range(BATCH):
      deter, stoch, steps = state['deter'][i], state['stoch'][i], []
      for t in range(STEPS):
        deter, stoch, logp = rssm.step(
          deter, stoch, action[i, t], tokens[i, t], reset[i, t]
        )
        steps.append((deter, stoch, logp))
      rows.append(stack(steps))
    return loss(stack(rows))

  args = (params, state, tokens, action)
  with backend.using(backend.Backend(form)):
    actual = jax.jit(jax.grad(fast_loss, (0, 1, 2, 3)))(*args)
  expected = jax.jit(jax.grad(slow_loss, (0, 1, 2, 3)))(*args)
  for name, apart in small.difference(actual, expected).items():
    assert apart < 1e-4, name
    prior = name.startswith('0/prior')  # plays no part
    assert prior or np.abs(small.leaves(expected)[name]).max() > 0, name


def stack(rows):
  return [jnp.stack(x) for x in zip(*rows, strict=True)]
