"""Saves together with other processes, for tests that kill them.

python checkpoint_worker.py MODE LOGDIR INDEX COUNT COORDINATOR [MESH]

Prints one JSON object per line. Resumes an agent of some MB, sharded over a
mesh of all devices (MESH such as 2,2,1), and a replay of tens of MB from the
newest checkpoint, however many processes have saved it.
"""

import hashlib
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from dreamer_tpu.checkpoint import layout
from dreamer_tpu.checkpoint.manager import Checkpointer
from dreamer_tpu.checkpoint.shard import Shard
from dreamer_tpu.hosts.sync import HostSync
from dreamer_tpu.replay import Replay
from dreamer_tpu.sharding import mesh as mesh_lib

DEVICES = 4  # Over all processes.
STREAMS = 8  # Likewise.
SPECS = {
  'kernel': PartitionSpec('fsdp', 'model'),
  'moment': PartitionSpec(('data', 'fsdp'), 'model'),
  'bias': PartitionSpec('model'),
  'count': PartitionSpec(),
}
SPEC = {
  'number': ((), 'int64'),
  'image': ((4000,), 'uint8'),
  'latent/deter': ((128,), 'float32'),
  'is_first': ((), 'bool'),
  'is_last': ((), 'bool'),
}


def initial():
  kernel = jax.random.normal(jax.random.key(0), (1024, 1024))
  return {
    'kernel': kernel,
    'moment': kernel * 2,
    'bias': jnp.arange(1024.0),
    'count': jnp.int32(0),
  }


def advance(agent):
  """Changes every number, equally on every mesh."""
  count = agent['count'] + 1
  change = lambda x: jnp.roll(x, 1, 0) * -0.875 + count
  arrays = {k: change(v) for k, v in agent.items() if k != 'count'}
  return {**arrays, 'count': count}


class Worker:
  """Part of a run in this process."""

  def __init__(self, logdir, index, count, mesh, timeout):
    self.index, self.count = index, count
    names = ('data', 'fsdp', 'model')
    grid = mesh_lib.make(dict(zip(names, mesh, strict=True)))
    places = {k: NamedSharding(grid, v) for k, v in SPECS.items()}
    self.whole = NamedSharding(grid, PartitionSpec())
    self.abstract = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      jax.eval_shape(initial),
      places,
    )
    self.advance = jax.jit(advance, out_shardings=places)
    self.gather = jax.jit(lambda x: x, out_shardings=self.whole)
    self.agent = jax.jit(initial, out_shardings=places)()
    self.width = STREAMS // count
    self.replay = Replay(
      SPEC,
      length=16,
      capacity=8000 // count,
      chunksize=128,
      online=True,
      streams=self.width,
      seed=0,
      shard=index,
    )
    self.shard = Shard(logdir, self.replay)
    self.checkpointer = Checkpointer(
      logdir / 'checkpoints',
      timeout=timeout,
      on_commit=self.shard.prune,
      gather=HostSync().gather,
    )
    self.step = 0
    self.rng = np.random.default_rng(index)

  def restore(self):
    """Resumes from the newest step, if there is one."""
    if layout.committed_steps(self.checkpointer.directory):
      restored = self.checkpointer.restore_newest(self._attempt)
      self.agent = restored.agent
      self.step = restored.step
    self.report('restored')

  def _attempt(self, step):
    restored = self.checkpointer.restore(step, self.abstract)
    self.shard.load(restored.replay)
    return restored

  def act(self, rounds):
    """Adds steps, each with a number of its own, and overwrites latents."""
    for i in range(rounds):
      self.step += STREAMS
      number = self.step + self.index * self.width + np.arange(self.width)
      rng = np.random.default_rng(self.step)
      self.replay.add(
        {
          'number': number,
          'image': rng.integers(0, 256, (self.width, 4000), np.uint8),
          'latent/deter': rng.normal(size=(self.width, 128)).astype('f4'),
          'is_first': np.full(self.width, i == 0),
          'is_last': np.zeros(self.width, bool),
        }
      )
    if len(self.replay):
      ids = self.replay.sample(8)[1]
      latents = self.rng.normal(size=(*ids.shape, 128)).astype('f4')
      self.replay.update(ids, {'latent/deter': latents})

  def save(self):
    """Starts a save and prints the hashes of its content."""
    write = self.shard.snapshot({'step': self.step})
    self.report('saving')
    run = {'step': self.step}
    self.checkpointer.save(self.step, self.agent, run, write)

  def report(self, event, **more):
    """Prints the step and the hashes of agent and replay."""
    hashes = {'agent': self.agent_hash(), 'replay': self.replay_hash()}
    line = {'event': event, 'step': self.step, **hashes, **more}
    print(json.dumps(line), flush=True)

  def agent_hash(self):
    whole = jax.tree.map(np.asarray, self.gather(self.agent))
    return digest(x for _, x in sorted(whole.items()))

  def replay_hash(self):
    chunks = self.replay._store.chunks.values()
    return digest(
      x
      for chunk in chunks
      for x in (
        np.int64([chunk.serial, chunk.next.serial if chunk.next else -1]),
        *(chunk.arrays[key][: chunk.fill] for key in SPEC),
      )
    )

  def numbers(self):
    """Returns the number and digest of every stored step."""
    return {
      int(chunk.arrays['number'][row]): digest(
        chunk.arrays[key][row] for key in SPEC
      )
      for chunk in self.replay._store.chunks.values()
      for row in range(chunk.fill)
    }


def digest(arrays):
  hash_ = hashlib.blake2b(digest_size=8)
  for array in arrays:
    hash_.update(np.ascontiguousarray(array))
  return hash_.hexdigest()


def forever(worker):
  """Saves again and again, and reports every commit."""
  worker.restore()
  while True:
    worker.act(24)
    worker.agent = worker.advance(worker.agent)
    for result in worker.checkpointer.wait():
      worker.report('failed' if result.error else 'committed', of=result.step)
    worker.save()


def once(worker):
  """Restores, reports all stored steps, acts and saves."""
  worker.restore()
  worker.report('held', numbers=worker.numbers())
  worker.act(40)
  worker.agent = worker.advance(worker.agent)
  worker.save()
  worker.report('saved', numbers=worker.numbers())
  (result,) = worker.checkpointer.wait()
  assert not result.error, result.error


def saves(worker):
  """Saves three times; if a file 'block' exists, process 1 fails the second."""
  worker.restore()
  logdir = worker.checkpointer.directory.parent
  for number in range(3):
    worker.act(40)
    block = (logdir / 'block').exists() and worker.index == number == 1
    folder = logdir / 'replay' / '0001'
    if block:
      folder.rename(logdir / 'hidden')
      folder.write_text('in the way')
    worker.save()
    (result,) = worker.checkpointer.wait()
    worker.report('failed' if result.error else 'committed', why=result.error)
    if block:
      folder.unlink()
      (logdir / 'hidden').rename(folder)


def main(mode, logdir, index, count, coordinator, mesh='2,2,1'):
  index, count = int(index), int(count)
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', DEVICES // count)
  if count > 1:
    jax.distributed.initialize(coordinator, count, index)
    multihost_utils.sync_global_devices('start')
  sizes = tuple(int(x) for x in mesh.split(','))
  # A process waits that long for one that fails, in the mode that has one.
  timeout = 10 if mode == 'saves' else 600
  worker = Worker(pathlib.Path(logdir), index, count, sizes, timeout)
  globals()[mode](worker)
  worker.checkpointer.close()


if __name__ == '__main__':
  main(*sys.argv[1:])
