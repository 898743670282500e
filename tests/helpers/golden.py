"""The golden updates: tiny agents of the public implementation."""

import pathlib

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from configs import base
from dreamer_tpu.agent import Agent, Space
from dreamer_tpu.checkpoint.dreamerv3 import names

FOLDER = pathlib.Path(__file__).parent.parent / 'golden'
PUBLIC = FOLDER / 'public_checkpoint'
MODULES = ('enc', 'dyn', 'dec', 'rew', 'con', 'pol', 'val', 'slowval')
OBS = {
  'vector_continuous': {
    'pos': Space(shape=(5,), dtype='float32'),
    'vel': Space(shape=(), dtype='float32'),
    'tok': Space(shape=(), dtype='int32', classes=6),
  },
  'image_discrete': {'image': Space(shape=(64, 64, 3), dtype='uint8')},
}
ACT = {
  'vector_continuous': {'action': Space(shape=(3,), dtype='float32')},
  'image_discrete': {'action': Space(shape=(), dtype='int32', classes=5)},
}


def config() -> ml_collections.ConfigDict:
  """The sizes that all golden updates share."""
  agent = base.base().agent
  agent.update(
    dict(
      rssm=dict(deter=32, hidden=12, stoch=4, classes=8, blocks=4),
      encoder=dict(depth=4, units=16, layers=2),
      decoder=dict(depth=4, units=16, layers=2, blocks=4),
      opt=dict(lr=1e-2, warmup=2),
    )
  )
  for head in ('reward', 'cont', 'policy', 'value'):
    agent[head].update(dict(units=16, layers=2))
  agent.reward.bins = agent.value.bins = 41
  return agent


class Golden:
  """One file of golden numbers and the agent it was made with."""

  def __init__(self, name: str):
    with np.load(FOLDER / f'{name}.npz') as file:
      self.arrays = dict(file)
    self.agent = Agent(OBS[name], ACT[name], config())

  def group(self, prefix: str) -> dict[str, np.ndarray]:
    """Arrays whose names start with `prefix`, without it."""
    start = prefix + '/'
    return {
      k[len(start) :]: v for k, v in self.arrays.items() if k.startswith(start)
    }

  def named(self, prefix: str) -> dict[str, np.ndarray]:
    """Parameters or gradients under our names."""
    return {
      names.from_public(k): v
      for k, v in self.group(prefix).items()
      if k.split('/')[0] in MODULES
    }

  def state(self) -> dict:
    """The agent's state before the first update."""
    state = jax.jit(self.agent.init)(jax.random.key(0))
    params = traverse_util.unflatten_dict(self.named('params'), '/')
    slow_value = params.pop('slow_value')
    same = jax.tree.structure(params) == jax.tree.structure(state['params'])
    if not same:
      raise ValueError('Golden parameters do not cover ours.')
    norm = self.group('params/retnorm')
    return {
      **state,
      'params': params,
      'slow_value': slow_value,
      'retnorm': {'low': norm['lo/value'], 'high': norm['hi/value']},
    }

  def batch(self) -> dict[str, np.ndarray]:
    """The replayed batch, one step of context first."""
    data = self.group('data')
    batch = {k: v for k, v in data.items() if k not in ('stepid', 'consec')}
    batch['latent/deter'] = batch.pop('dyn/deter')
    batch['latent/stoch'] = indices(batch.pop('dyn/stoch'))
    batch['consec'] = data['consec'][:, 0]
    return batch

  def carry(self) -> dict:
    """The carry from an earlier batch."""
    carry = self.group('carry')
    action = {'action': carry['prevact/action']}
    stoch = indices(carry['stoch'])
    return {'deter': carry['deter'], 'stoch': stoch, 'action': action}


def indices(onehot: np.ndarray) -> np.ndarray:
  return onehot.argmax(-1).astype(np.uint8)


def error(actual, expected) -> float:
  """Largest |actual - expected| / (2e-4 |expected| + 2e-5); 1 is the limit."""
  actual, expected = np.asarray(actual), np.asarray(expected)
  if actual.shape != expected.shape:
    raise ValueError(f'{actual.shape} is not {expected.shape}')
  actual, expected = actual.astype(np.float64), expected.astype(np.float64)
  bound = 2e-4 * np.abs(expected) + 2e-5
  return float(np.max(np.abs(actual - expected) / bound, initial=0.0))
