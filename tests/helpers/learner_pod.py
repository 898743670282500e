"""One process of several that learn together, for test_processes.

python pod_program.py MODE DIRECTORY DEVICES MODEL COORDINATOR COUNT INDEX
"""

import json
import os
import pathlib
import sys

import jax
import ml_collections
import numpy as np

from configs import base
from dreamer_tpu.hosts.sync import HostSync
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.replay import Replay, Stream
from dreamer_tpu.sharding import mesh as mesh_lib
from tests.helpers import small

HOST = 1_000_000  # Tags of one host's steps start here, times its number.


def make_learner(model):
  config = ml_collections.ConfigDict(dict(data=-1, fsdp=1, model=model))
  learner = Learner(
    small.make_agent(small.VECTOR_OBS),
    mesh_lib.make(config),
    base.base().sharding.rules,
    batch_size=small.ROWS,
    seed=0,
  )
  state = small.filled_state(learner.agent)
  learner.state = jax.tree.map(jax.device_put, state, learner.shardings)
  return learner


def local(tree):
  """This process's rows of a global batch."""
  rows = small.ROWS // jax.process_count()
  first = jax.process_index() * rows
  return jax.tree.map(lambda x: x[first : first + rows], tree)


def same_batches(directory, model):
  """Three updates on batches that do not depend on the processes."""
  learner = make_learner(model)
  for seed in range(3):
    batch = small.make_batch(learner.agent, seed=seed)
    learner.update(learner.put(local(batch)), local(small.make_stepid()))
  result = learner.flush()
  deter = result.latents['latent/deter']
  np.save(directory / f'deter-{jax.process_index()}.npy', deter)
  whole = jax.jit(lambda x: x, out_shardings=learner.steps.whole)
  params = small.flat(
    jax.tree.map(
      lambda x: x.addressable_shards[0].data, whole(learner.state['params'])
    )
  )
  if jax.process_index() == 0:
    np.savez(directory / 'params.npz', **params)
    (directory / 'metrics.json').write_text(json.dumps(result.metrics))


def tags(directory, model):
  """Follows rows from the replays to the devices, and latents back."""
  learner = make_learner(model)
  agent, rows = learner.agent, small.ROWS // jax.process_count()
  replay = fill(agent)
  stream = Stream(replay, batch=rows, length=small.STEPS, context=1)
  seen, kept = [], 0
  for _ in range(4):
    data, stepid = next(stream)
    batch = learner.put(data)
    for shard in batch['reward'].addressable_shards:
      seen.append(np.asarray(shard.data).ravel().tolist())
    learner.update(batch, stepid)
    result = learner.flush()
    replay.update(result.stepid, result.latents)
    back, again = replay.gather(stepid[:, 0], 1, small.STEPS)
    assert (again == result.stepid).all()
    ids, last = np.unique(again.ravel()[::-1], return_index=True)
    for key, value in result.latents.items():
      flat = [
        x.reshape(-1, x.shape[-1])[::-1][last] for x in (value, back[key])
      ]
      np.testing.assert_array_equal(*flat)
    kept += len(ids)
  name = f'tags-{jax.process_index()}.json'
  (directory / name).write_text(json.dumps({'seen': seen, 'kept': kept}))


def fill(agent):
  spec = {k: (v.shape, v.dtype) for k, v in agent.obs_space.items()}
  spec |= {k: (v.shape, v.dtype) for k, v in agent.act_space.items()}
  spec |= agent.latent_spec()
  spec |= {'reward': ((), 'float32')}
  spec |= dict.fromkeys(('is_first', 'is_last', 'is_terminal'), ((), 'bool'))
  replay = Replay(
    spec,
    length=small.STEPS + 1,
    capacity=1000,
    chunksize=8,
    online=True,
    streams=2,
    seed=jax.process_index(),
    shard=jax.process_index(),
  )
  rng = np.random.default_rng(jax.process_index())
  for i in range(40):
    step = {
      k: rng.integers(0, 2, (2, *shape)).astype(dtype)
      for k, (shape, dtype) in spec.items()
    }
    tag = HOST * (jax.process_index() + 1) + 2 * i
    step['reward'] = np.array([tag, tag + 1], np.float32)
    replay.add(step)
  return replay


def rounds(directory, model):
  """Records the consensus of every round."""
  del model
  sync, index = HostSync(), jax.process_index()
  known = []
  for i in range(5):
    row = sync.agree(
      10 * index + i, ready=i >= index, stop=i == 3 and index == 1
    )
    known.append([row.steps, row.ready, row.stop, row.now])
  rest = sync.drain(index)
  flags = [sync.gather(index), sync.broadcast(index)]
  sync.barrier('the end', timeout=60)
  name = f'rounds-{index}.json'
  (directory / name).write_text(json.dumps([known, rest, flags]))


if __name__ == '__main__':
  mode, directory, devices, model, coordinator, count, index = sys.argv[1:]
  os.environ['JAX_PLATFORMS'] = 'cpu'
  jax.config.update('jax_disable_most_optimizations', True)
  jax.config.update('jax_num_cpu_devices', int(devices))
  if int(count) > 1:
    jax.distributed.initialize(coordinator, int(count), int(index))
  globals()[mode](pathlib.Path(directory), int(model))
