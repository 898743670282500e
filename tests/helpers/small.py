"""A small agent whose sizes divide over eight devices, and batches for it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from configs import base
from dreamer_tpu.agent import Agent, Space
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.sharding import mesh as mesh_lib

OBS = {
  'image': Space(shape=(12, 12, 1), dtype='uint8'),
  'speed': Space(shape=(3,), dtype='float32'),
  'token': Space(shape=(), dtype='int32', classes=5),
}
ACT = {
  'move': Space(shape=(2,), dtype='float32'),
  'tool': Space(shape=(), dtype='int32', classes=4),
}
VECTOR_OBS = {'speed': OBS['speed']}
ROWS, STEPS, CONTEXT = 8, 4, 1


def config() -> ml_collections.ConfigDict:
  """Sizes that every mesh of eight devices divides."""
  agent = base.base().agent
  agent.update(
    dict(
      rssm=dict(deter=64, hidden=16, stoch=8, classes=8),
      encoder=dict(depth=8, mults=(1, 2), units=16, layers=1),
      decoder=dict(depth=8, mults=(1, 2), units=16, layers=1),
      imag_length=3,
      opt=dict(lr=1e-3, warmup=0),
    )
  )
  for head in ('reward', 'cont', 'policy', 'value'):
    agent[head].update(dict(units=16, layers=1))
  agent.reward.bins = agent.value.bins = 41
  return agent


def make_agent(
  obs_space: dict[str, Space] = OBS, *, dtype: Any = jnp.float32
) -> Agent:
  """The small agent with both kinds of action."""
  return Agent(obs_space, ACT, config(), dtype=dtype, context=CONTEXT)


def make_mesh(shape: Sequence[int] = (1, 1, 1)) -> Mesh:
  """A mesh over the first devices, as `mesh.make` builds it over all."""
  count = int(np.prod(shape))
  devices = np.array(jax.devices()[:count]).reshape(shape)
  types = (jax.sharding.AxisType.Auto,) * 3
  return Mesh(devices, mesh_lib.AXES, axis_types=types)


def make_learner(
  agent: Agent,
  shape: Sequence[int] = (1, 1, 1),
  *,
  seed: int = 0,
  init: bool = True,
) -> Learner:
  """A learner on the first devices, with a fresh state if `init`."""
  rules = base.base().sharding.rules
  learner = Learner(agent, make_mesh(shape), rules, batch_size=ROWS, seed=seed)
  if init:
    learner.init()
  return learner


def filled_state(agent: Agent) -> dict[str, Any]:
  """A state on the host in which no prediction head is zero."""
  state = jax.device_get(jax.jit(agent.init)(jax.random.key(0)))
  rng = np.random.default_rng(1)

  def fill(x):
    empty = x.ndim > 1 and not x.any()
    return rng.normal(0, 0.1, x.shape).astype(x.dtype) if empty else x

  state['params'] = jax.tree.map(fill, state['params'])
  # Two-hot bins reach 5e8: with larger logits, the float32 rounding of huge
  # values dominates the critic's gradient.
  state['params']['value']['out']['kernel'] *= 0.3
  state['slow_value'] = jax.tree.map(
    lambda x: 1.1 * x, state['params']['value']
  )
  return state


def make_batch(
  agent: Agent, *, steps: int = STEPS, seed: int = 0, consec: int = 0
) -> dict[str, np.ndarray]:
  """Random sequences as the replay stream hands them out."""
  rng = np.random.default_rng(seed)
  shape = (ROWS, CONTEXT + steps)
  batch: dict[str, np.ndarray] = {}
  for key, space in {**agent.obs_space, **agent.act_space}.items():
    batch[key] = _sample(rng, space, shape)
  batch['reward'] = rng.normal(size=shape).astype(np.float32)
  batch['is_first'] = rng.random(shape) < 0.1
  batch['is_first'][:, 0] = True
  batch['is_last'] = rng.random(shape) < 0.1
  batch['is_terminal'] = batch['is_last'] & (rng.random(shape) < 0.5)
  for key, ((size,), dtype) in agent.latent_spec().items():
    if dtype == 'uint8':
      classes = agent.config.rssm.classes
      batch[key] = rng.integers(0, classes, (*shape, size)).astype(np.uint8)
    else:
      batch[key] = np.tanh(rng.normal(size=(*shape, size))).astype(dtype)
  batch['consec'] = np.full(ROWS, consec, np.int32)
  return batch


def make_stepid(steps: int = STEPS) -> np.ndarray:
  """An address per step, context included."""
  count = CONTEXT + steps
  return np.arange(ROWS * count, dtype=np.int64).reshape(ROWS, count)


def _sample(rng, space: Space, shape) -> np.ndarray:
  shape = (*shape, *space.shape)
  if space.is_image:
    return rng.integers(0, 256, shape).astype(np.uint8)
  if space.classes:
    return rng.integers(0, space.classes, shape).astype(space.dtype)
  return np.tanh(rng.normal(size=shape)).astype(space.dtype)


def leaves(tree: Any) -> dict[str, Any]:
  """All leaves under their paths."""
  pairs = jax.tree_util.tree_leaves_with_path(tree)
  keystr = jax.tree_util.keystr
  return {keystr(k, simple=True, separator='/'): v for k, v in pairs}


def flat(tree: Any) -> dict[str, np.ndarray]:
  """Host copies of all leaves under their paths."""
  return {k: np.array(v) for k, v in leaves(tree).items()}


def difference(actual: Any, expected: Any) -> dict[str, float]:
  """Per leaf, the largest deviation relative to the largest magnitude."""
  actual, expected = flat(actual), flat(expected)
  if actual.keys() != expected.keys():
    raise ValueError(sorted(actual.keys() ^ expected.keys()))
  result = {}
  for name, x in expected.items():
    x, y = x.astype(np.float64), actual[name].astype(np.float64)
    scale = np.abs(x).max(initial=0.0) or 1.0
    result[name] = float(np.abs(y - x).max(initial=0.0) / scale)
  return result
