"""A small run that saves its agent and replay."""

import jax
import jax.numpy as jnp
import numpy as np

from dreamer_tpu.checkpoint.manager import Checkpointer
from dreamer_tpu.checkpoint.shard import Shard
from tests.helpers.replay_model import Envs, fresh_latents, make

CONFIG = {'task': 'dmc_walker_walk'}


def make_agent(step):
  kernel = jax.random.normal(jax.random.key(step), (64, 64))
  return {'params': {'rssm': {'kernel': kernel}}, 'step': jnp.int32(step)}


SHAPES = jax.eval_shape(lambda: make_agent(0))


def contents(replay):
  data, ids = replay.sample(2000, rng=np.random.default_rng(0))
  return {k: v.tobytes() for k, v in {**data, 'ids': ids}.items()}


class Run:
  """A replay that grows, saved together with an agent."""

  shapes = SHAPES

  def __init__(self, logdir, **kwargs):
    self.replay = make()
    self.shard = Shard(logdir, self.replay)
    self.checkpointer = Checkpointer(
      logdir / 'checkpoints', on_commit=self.shard.prune, **kwargs
    )
    self.envs = Envs(3)

  def __enter__(self):
    return self

  def __exit__(self, *exc):
    self.checkpointer.close()

  def save(self, step, rounds=12, fails=False, score=None):
    for i in range(rounds):
      self.replay.add(self.envs.step(restart=i == 0))
    ids = self.replay.sample(4)[1]
    values = fresh_latents(ids.shape, np.random.default_rng(step))
    self.replay.update(ids, values)
    write = self.shard.snapshot({'stream': step})
    run = {'n': step, 'config': CONFIG}
    self.checkpointer.save(
      step,
      make_agent(step),
      run,
      write,
      score=score,
      replay_bytes=self.shard.planned_bytes,
    )
    (result,) = self.checkpointer.wait()
    assert bool(result.error) == fails, result.error
    return contents(self.replay)

  def load(self, step, config=CONFIG):
    restored = self.checkpointer.restore(step, SHAPES, config)
    local = self.shard.load(restored.replay)
    kernel = restored.agent['params']['rssm']['kernel']
    expected = make_agent(step)['params']['rssm']['kernel']
    np.testing.assert_array_equal(kernel, expected)
    assert local == {'stream': step}
    return restored.run['n']

  def restore(self):
    return self.checkpointer.restore_newest(self.load)
