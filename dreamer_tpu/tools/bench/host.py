"""Benchmarks of the host: acting in environments, replay, checkpoints."""

import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dreamer_tpu.agent import Agent
from dreamer_tpu.checkpoint.manager import Checkpointer
from dreamer_tpu.replay import Replay
from dreamer_tpu.run import parts
from dreamer_tpu.tools.bench.device import random_steps, timed

Row = dict[str, Any]
WARMUP = 10


def actor(config: Any, repeat: int) -> list[Row]:
  """Measures environments, policy and replay inserts together."""
  unroll = config.env.unroll  # Steps of every environment in a call.
  with parts.training_envs(config, 0) as env:
    agent = parts.make_agent(config, env)
    policy = parts.make_policy(config, agent, env.num_envs)
    state = jax.jit(agent.init)(jax.random.key(config.seed))
    policy.params = jax.tree.map(
      lambda x: x.astype(agent.dtype), state['params']
    )
    loop, store = parts.make_actor(config, env, policy, _replay(config, agent))
    seconds = _median(lambda: loop.step(store), repeat, warmup=WARMUP)
  return [
    {
      'task': config.task,
      'envs': config.run.envs,
      'unroll': unroll,
      'ms': 1e3 * seconds,
      'steps_per_s': unroll * config.run.envs / seconds,
    }
  ]


def replay(config: Any, repeat: int) -> list[Row]:
  """Measures replay inserts, batch sampling and write-back of latents."""
  with parts.training_envs(config, 0) as env:
    agent = parts.make_agent(config, env)
  replay = _replay(config, agent)
  rng = np.random.default_rng(config.seed)
  streams = config.run.envs
  step = random_steps(agent, (streams,), rng)
  insert = _median(lambda: replay.add(step), repeat * replay.length)
  batch, stepid = replay.sample(config.batch_size)
  sample = _median(lambda: replay.sample(config.batch_size), repeat)
  latents = {k: v for k, v in batch.items() if k.startswith('latent/')}
  write = _median(lambda: replay.update(stepid, latents), repeat)
  size = sum(x.nbytes for x in batch.values())
  return [
    {
      'task': config.task,
      'batch': f'{config.batch_size}x{replay.length}',
      'insert_steps_per_s': streams / insert,
      'sample_ms': 1e3 * sample,
      'sample_mb_per_s': size / 1e6 / sample,
      'write_back_ms': 1e3 * write,
      'bytes_per_step': size / config.batch_size / replay.length,
    }
  ]


def checkpoint(config: Any, repeat: int) -> list[Row]:
  """Measures saving the agent, the part that blocks training, and restoring."""
  with parts.training_envs(config, 0) as env:
    learner = parts.make_learner(config, parts.make_agent(config, env))
  learner.init()
  blocking, total, restore = [], [], []
  with (
    tempfile.TemporaryDirectory() as folder,
    Checkpointer(pathlib.Path(folder) / 'checkpoints') as checkpointer,
  ):
    for step in range(1, repeat + 1):
      blocking.append(timed(checkpointer.save, step, learner.state, {}))
      total.append(blocking[-1] + timed(checkpointer.wait))
      restore.append(timed(checkpointer.restore, step, learner.abstract))
  size = sum(x.nbytes for x in jax.tree.leaves(learner.state))
  return [
    {
      'task': config.task,
      'mb': size / 1e6,
      'blocking_s': statistics.median(blocking),
      'save_s': statistics.median(total),
      'save_mb_per_s': size / 1e6 / statistics.median(total),
      'restore_s': statistics.median(restore),
    }
  ]


def _replay(config: Any, agent: Agent) -> Replay:
  return parts.make_replay(config, agent, config.run.envs)


def _median(run: Callable[[], Any], repeat: int, warmup: int = 1) -> float:
  """Returns the median seconds of a call after the warm-up."""
  times = [timed(run) for _ in range(warmup + repeat)]
  return statistics.median(times[warmup:])
