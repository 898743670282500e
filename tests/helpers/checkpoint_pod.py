"""Saves in one process, for tests that kill it or fill its disk.

python checkpoint_pod.py MODE DIRECTORY [PROCESS COORDINATOR]
"""

import json
import os
import pathlib
import resource
import sys
import time

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from dreamer_tpu.checkpoint.manager import Checkpointer

SIZE = 1 << 20


def values(step):
  """Returns incompressible float32 [SIZE], different for every step."""
  return jax.random.normal(jax.random.key(step), (SIZE,))


def agent(step):
  return {'params': {'rssm': {'kernel': values(step)}}, 'step': jnp.int32(step)}


def hang(directory):
  """Commits step 1, then hangs while writing step 2."""

  def write_replay():
    (directory / 'chunk-2').write_bytes(b'x' * 100)
    while not list((directory / 'checkpoints').glob('2.*')):
      time.sleep(0.01)
    print('writing', flush=True)
    time.sleep(600)
    return {}

  with Checkpointer(directory / 'checkpoints') as checkpointer:
    checkpointer.save(1, agent(1), {'updates': 1}, lambda: {'chunks': ['a']})
    checkpointer.wait()
    checkpointer.save(2, agent(2), {'updates': 2}, write_replay)
    checkpointer.wait()


def forever(directory):
  """Commits one step after the other and prints each."""
  with Checkpointer(directory / 'checkpoints') as checkpointer:
    step = max(checkpointer.steps(), default=0)
    if step:
      shapes = jax.eval_shape(lambda: agent(step))
      checkpointer.restore(step, shapes)
    while True:
      step += 1
      checkpointer.save(step, agent(step), {'updates': step}, lambda: {'n': 1})
      for result in checkpointer.poll():
        assert not result.error
        print(result.step, flush=True)


def full(directory):
  """Saves step 2 on a full disk, and step 3 with space again."""
  with Checkpointer(directory / 'checkpoints') as checkpointer:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    results = []
    for step in (1, 2, 3):
      limit = 100_000 if step == 2 else limits[0]
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
      checkpointer.save(step, agent(step), {'updates': step})
      results += checkpointer.wait()
      print(json.dumps([results[-1].error, checkpointer.steps()]), flush=True)


def together(directory):
  """Saves an array of which each of two processes holds half."""
  index, coordinator = int(sys.argv[3]), sys.argv[4]
  jax.distributed.initialize(coordinator, 2, index)
  mesh = jax.make_mesh(
    (2, 2), ('x', 'y'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  sharding = NamedSharding(mesh, PartitionSpec(('x', 'y')))
  state = jax.jit(
    agent,
    static_argnums=0,
    out_shardings={
      'params': {'rssm': {'kernel': sharding}},
      'step': NamedSharding(mesh, PartitionSpec()),
    },
  )(7)
  commits = []
  with Checkpointer(
    directory / 'checkpoints', timeout=60, on_commit=commits.append
  ) as checkpointer:
    checkpointer.save(
      7, state, {'updates': 7}, lambda: {'chunks': [f'from-{index}']}
    )
    (result,) = checkpointer.wait()
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state,
    )
    restored = checkpointer.restore(7, shapes)
    kernel = restored.agent['params']['rssm']['kernel']
    equal = jax.jit(
      lambda a, b: (a == b).all(),
      out_shardings=NamedSharding(mesh, PartitionSpec()),
    )(kernel, state['params']['rssm']['kernel'])
    print(json.dumps([result.error, bool(equal), commits]), flush=True)


if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  jax.config.update('jax_num_cpu_devices', 2)
  globals()[sys.argv[1]](pathlib.Path(sys.argv[2]))
