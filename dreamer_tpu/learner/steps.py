"""The compiled programs of a learner on one mesh."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, NamedSharding

from dreamer_tpu.agent import Agent
from dreamer_tpu.agent.ops import backend
from dreamer_tpu.sharding import rules

Tree = dict[str, Any]
# Independent streams of random numbers from one seed.
INIT, TRAIN, REPORT = range(3)
OPTIONS = {
  # All-reduces gradients in pieces of at most this size: four for the largest
  # model instead of eight, which still overlap with computation.
  'tpu': {'xla_jf_crs_combiner_threshold_in_bytes': str(2**28)},
  # Vectorizes loops with 512 bits instead of 256, as matmuls are.
  'cpu': {'xla_cpu_prefer_vector_width': '512'},
}


@struct.dataclass
class Metrics:
  """Scalars of an update in one vector, which is one transfer to the host.

  Attributes:
    values: float32 [n].
    names: Names of the values.
  """

  values: jax.Array
  names: tuple[str, ...] = struct.field(pytree_node=False)

  @classmethod
  def create(cls, scalars: Mapping[str, jax.Array]) -> 'Metrics':
    """Stacks scalars in the order of their names."""
    names = tuple(sorted(scalars))
    values = jnp.stack([scalars[k].astype(jnp.float32) for k in names])
    return cls(values, names)

  def to_host(self) -> dict[str, float]:
    """Copies the scalars to the host, waiting for the update."""
    values = jax.device_get(self.values.addressable_shards[0].data)
    return dict(zip(self.names, values.tolist(), strict=True))


def select_backend(
  platform: str, devices: int, constrain: backend.Constrain | None = None
) -> backend.Backend:
  """Selects the form of all ops of a program.

  Args:
    platform: Platform of its devices, such as 'tpu'.
    devices: Number of its devices.
    constrain: Sharding constraints of activations; None on one device.
  """
  one_cpu = platform == 'cpu' and devices == 1
  form = backend.Form.CPU if one_cpu else backend.Form.ACCELERATOR
  return backend.Backend(form, constrain)


class Steps:
  """The jitted functions of a learner. Making them allocates nothing.

  The devices of the mesh may be those of a topology, to lower and compile for.

  Attributes:
    rows: Sharding of batches and carries, over their rows.
    whole: Replicated sharding.
    shardings: Shardings of the agent's state.
    abstract: The state as ShapeDtypeStructs with shardings.
    init: Maps a seed to a state.
    new_carry: Returns an initial carry.
    train: Maps state, carry, batch and seed to state, carry, latents and
      `Metrics`. State and carry are donated and keep their shardings.
    report: Maps state, carry, batch, seed and count to carry, metrics and
      arrays.
    gradient_norm: Maps the arguments of `report` and the index of a loss term
      to the norm of that term's gradient.
    publish: Maps params to the policy's weights in the compute dtype.
  """

  def __init__(
    self,
    agent: Agent,
    mesh: Mesh,
    sharding_rules: Mapping[str, str | None],
    *,
    batch_size: int,
  ):
    self.agent = agent
    self._batch_size = batch_size
    self.rows = rows = rules.batch(mesh)
    self.whole = whole = rules.replicated(mesh)
    rules.check(mesh, sharding_rules, agent.variables)
    abstract = jax.eval_shape(agent.init, jax.random.key(0))
    self.shardings = rules.state(
      mesh, sharding_rules, agent.variables, abstract
    )
    self.abstract = jax.tree.map(_struct, abstract, self.shardings)
    platform = mesh.devices.flat[0].platform
    self._backend = select_backend(
      platform, mesh.size, rules.constraints(mesh, sharding_rules)
    )
    self.init = jax.jit(self._init, out_shardings=self.shardings)
    self.new_carry = jax.jit(
      lambda: agent.initial_carry(batch_size), out_shardings=rows
    )
    self.train = jax.jit(
      self._train,
      donate_argnums=(0, 1),
      out_shardings=(self.shardings, rows, rows, whole),
      compiler_options=OPTIONS.get(platform),
    )
    self.report = jax.jit(self._report, out_shardings=(rows, whole, whole))
    self.gradient_norm = jax.jit(self._gradient_norm, out_shardings=whole)
    self.publish = jax.jit(self._publish, out_shardings=whole)

  def train_arguments(self, batch_length: int) -> tuple[Tree, Tree, Tree, Any]:
    """Returns the arguments of `train` as ShapeDtypeStructs with shardings.

    Args:
      batch_length: Trained steps T of every sequence.
    """
    agent = self.agent
    carry = jax.eval_shape(lambda: agent.initial_carry(self._batch_size))
    leading = (self._batch_size, agent.context + batch_length)
    batch = {
      k: jax.ShapeDtypeStruct((*leading, *shape), dtype)
      for k, (shape, dtype) in step_spec(agent).items()
    }
    batch['consec'] = jax.ShapeDtypeStruct(leading[:1], jnp.int32)
    carry, batch = jax.tree.map(lambda x: _struct(x, self.rows), (carry, batch))
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=self.whole)
    return self.abstract, carry, batch, seed

  def _init(self, seed):
    return self.agent.init(_stream(seed, INIT))

  def _train(self, state, carry, batch, seed):
    key = jax.random.fold_in(_stream(seed, TRAIN), state['step'])
    with backend.using(self._backend):
      state, carry, latents, metrics = self.agent.train(
        self._gather(state), carry, batch, key
      )
    return state, carry, latents, Metrics.create(metrics)

  def _report(self, state, carry, batch, seed, count):
    key = jax.random.fold_in(_stream(seed, REPORT), count)
    with backend.using(self._backend):
      return self.agent.report(self._gather(state), carry, batch, key)

  def _gradient_norm(self, state, carry, batch, seed, count, term):
    key = jax.random.fold_in(_stream(seed, REPORT), count)
    state = self._gather(state)
    with backend.using(self._backend):
      return self.agent.gradient_norm(state, carry, batch, key, term)

  def _gather(self, state):
    networks = {
      k: rules.gather(state[k], self.shardings[k], self.agent.dtype)
      for k in ('params', 'slow_value')
    }
    return {**state, **networks}

  def _publish(self, params):
    used = {k: params[k] for k in ('encoder', 'rssm', 'policy')}
    return jax.tree.map(lambda x: x.astype(self.agent.dtype), used)


def step_spec(agent: Agent) -> dict[str, tuple[tuple[int, ...], str]]:
  """Returns shape and dtype of all arrays that replay stores with a step."""
  spaces = {**agent.obs_space, **agent.act_space}
  return {
    **{k: (v.shape, v.dtype) for k, v in spaces.items()},
    'reward': ((), 'float32'),
    'is_first': ((), 'bool'),
    'is_last': ((), 'bool'),
    'is_terminal': ((), 'bool'),
    **agent.latent_spec(),
  }


def _struct(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _stream(seed: jax.Array, stream: int) -> jax.Array:
  return jax.random.fold_in(jax.random.key(seed), stream)
