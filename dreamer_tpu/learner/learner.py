"""The compiled update: state in, batch in, new state and latents out."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from dreamer_tpu.agent import Agent
from dreamer_tpu.sharding import arrays, rules

Tree = dict[str, Any]
# Independent streams of random numbers from one seed.
INIT, TRAIN, REPORT = range(3)


class Result(NamedTuple):
  """What an update left on the host.

  Attributes:
    stepid: int64 [local rows, T], addresses of the trained steps.
    latents: [local rows, T, ...] to write back to the replay.
    metrics: Scalars.
    nonfinite: Name of the first parameter whose gradient was not finite, or
      '' (then the update was skipped).
  """

  stepid: np.ndarray
  latents: dict[str, np.ndarray]
  metrics: dict[str, float]
  nonfinite: str


class Learner:
  """Holds the agent's state on the mesh and trains it.

  Updates are dispatched without waiting; the results of one are handed out
  when the next has been dispatched, or by `flush`.

  Args:
    agent: The agent's functions.
    mesh: The device mesh.
    sharding_rules: Mesh axis per logical axis.
    batch_size: Rows of the global batch.
    seed: Of parameters and training.
  """

  def __init__(
    self,
    agent: Agent,
    mesh: Mesh,
    sharding_rules: Mapping[str, str | None],
    *,
    batch_size: int,
    seed: int,
  ):
    self.agent = agent
    self._rows = rules.batch(mesh)
    self._whole = whole = rules.replicated(mesh)
    # An argument, not a constant: all seeds share one compiled program.
    self._seed = self._scalar(np.uint32(seed))
    rules.check(mesh, sharding_rules, agent.variables)
    abstract = jax.eval_shape(agent.init, jax.random.key(0))
    self.shardings = rules.state(
      mesh, sharding_rules, agent.variables, abstract
    )
    self.abstract = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      self.shardings,
    )
    self.state: Tree = {}
    self._pending: tuple | None = None
    self._names: list[str] = []
    self._train = jax.jit(
      self._train_fn,
      donate_argnums=(0, 1),
      out_shardings=(self.shardings, self._rows, self._rows, whole),
    )
    self._report = jax.jit(
      self._report_fn, out_shardings=(self._rows, whole, whole)
    )
    self._new_carry = jax.jit(
      lambda: agent.initial_carry(batch_size), out_shardings=self._rows
    )
    self._publish = jax.jit(self._publish_fn, out_shardings=whole)
    self._carry = self._new_carry()

  def init(self) -> None:
    """Creates a fresh state, every shard on its own device."""
    make = jax.jit(self._init_fn, out_shardings=self.shardings)
    self.state = make(self._seed)

  def parameter_counts(self) -> dict[str, int]:
    """Number of parameters per module."""
    return {
      name: sum(x.size for x in jax.tree.leaves(tree))
      for name, tree in self.abstract['params'].items()
    }

  def put(self, data: Mapping[str, np.ndarray]) -> Tree:
    """Starts to copy this host's rows of a batch to its devices."""
    return arrays.to_global(self._rows, dict(data))

  def update(self, batch: Tree, stepid: np.ndarray) -> Result | None:
    """Dispatches an update.

    Args:
      batch: From `put`, K context steps first.
      stepid: int64 [local rows, K + T].

    Returns:
      The result of the update before it, if not yet handed out.
    """
    self.state, self._carry, latents, metrics = self._train(
      self.state, self._carry, batch, self._seed
    )
    previous = self._pending
    self._pending = (stepid[:, self.agent.context :], latents, metrics)
    return self._fetch(previous)

  def flush(self) -> Result | None:
    """The result of the last update; waits for it."""
    previous, self._pending = self._pending, None
    return self._fetch(previous)

  def report(
    self, parts: Sequence[Tree], count: int
  ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Losses without an update, and videos; waits for them.

    Args:
      parts: Consecutive parts of one batch, from `put`.
      count: Number of the report, for its random numbers.

    Returns:
      Scalars, averaged over the parts, and uint8 [T, H, W, 3] per video of
      the first one.
    """
    carry = self._new_carry()
    number = self._scalar(np.int32(count))
    results = []
    for part in parts:
      carry, *result = self._report(self.state, carry, part, self._seed, number)
      results.append(jax.device_get(result))
    mean = lambda *xs: float(np.mean(xs))
    return jax.tree.map(mean, *(r[0] for r in results)), results[0][1]

  def publish(self) -> Tree:
    """A copy of the policy's weights in the compute dtype, on one device."""
    return arrays.on_one_device(self._publish(self.state['params']))

  def _scalar(self, value: np.generic) -> jax.Array:
    return arrays.to_global(self._whole, np.asarray(value))

  def _init_fn(self, seed):
    return self.agent.init(_stream(seed, INIT))

  def _train_fn(self, state, carry, batch, seed):
    key = jax.random.fold_in(_stream(seed, TRAIN), state['step'])
    state, carry, latents, metrics = self.agent.train(
      self._gather(state), carry, batch, key
    )
    # One vector is one transfer.
    self._names = sorted(metrics)
    vector = jnp.stack([metrics[k].astype(jnp.float32) for k in self._names])
    return state, carry, latents, vector

  def _report_fn(self, state, carry, batch, seed, count):
    key = jax.random.fold_in(_stream(seed, REPORT), count)
    return self.agent.report(self._gather(state), carry, batch, key)

  def _gather(self, state):
    networks = {
      k: rules.gather(state[k], self.shardings[k])
      for k in ('params', 'slow_value')
    }
    return {**state, **networks}

  def _publish_fn(self, params):
    used = {k: params[k] for k in ('encoder', 'rssm', 'policy')}
    return jax.tree.map(lambda x: x.astype(self.agent.dtype), used)

  def _fetch(self, pending: tuple | None) -> Result | None:
    if pending is None:
      return None
    stepid, latents, vector = pending
    values = jax.device_get(vector.addressable_shards[0].data)
    metrics = dict(zip(self._names, values.tolist(), strict=True))
    culprit = int(metrics.pop('opt/nonfinite'))
    name = '' if culprit < 0 else self._parameter_names()[culprit]
    return Result(stepid, arrays.to_local(latents), metrics, name)

  def _parameter_names(self) -> list[str]:
    flat = traverse_util.flatten_dict(self.abstract['params'], sep='/')
    return sorted(flat, key=lambda name: name.split('/'))


def _stream(seed: jax.Array, stream: int) -> jax.Array:
  return jax.random.fold_in(jax.random.key(seed), stream)
