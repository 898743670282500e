"""Benchmarks the update and the policy step on synthetic data.

Needs no environments: `SPACES` has the spaces of each suite.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer_tpu.agent import Agent, Space
from dreamer_tpu.cli import platform
from dreamer_tpu.errors import UserError
from dreamer_tpu.learner.acting import PolicyStep
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.learner.steps import step_spec
from dreamer_tpu.metrics import flops
from dreamer_tpu.sharding import mesh as mesh_lib

REFERENCE_SIZE = 1024
POLICY_BATCHES = (1, 4, 16, 64)
clock = time.perf_counter
Row = dict[str, Any]

_IMAGE = lambda *shape: {'image': Space(shape=shape, dtype='uint8')}
_CHOICE = lambda n: {'action': Space(shape=(), dtype='int32', classes=n)}
# Observation and action spaces by suite.
SPACES = {
  'atari': (_IMAGE(96, 96, 1), _CHOICE(18)),
  'atari100k': (_IMAGE(64, 64, 3), _CHOICE(6)),
  'crafter': (_IMAGE(64, 64, 3), _CHOICE(17)),
  'dmc': (
    {
      'height': Space(shape=(), dtype='float32'),
      'orientations': Space(shape=(14,), dtype='float32'),
      'velocity': Space(shape=(9,), dtype='float32'),
    },
    {'action': Space(shape=(6,), dtype='float32')},
  ),
  'gym': ({'vector': Space(shape=(4,), dtype='float32')}, _CHOICE(2)),
}


def make_agent(config: Any) -> Agent:
  """Makes an agent for the spaces of its suite.

  Raises:
    UserError: There are no synthetic data for the suite.
  """
  suite = config.task.partition('_')[0]
  if suite not in SPACES:
    raise UserError(
      f"There are no synthetic data for task '{config.task}'; supported "
      f'suites: {", ".join(SPACES)}.'
    )
  obs, act = SPACES[suite]
  if suite == 'dmc' and config.env.dmc.image:
    obs = _IMAGE(*config.env.dmc.size, 3)
  backend = jax.default_backend()
  dtype = jnp.dtype(platform.compute_dtype(config.dtype.compute, backend))
  return Agent(
    obs, act, config.agent, dtype=dtype, context=config.replay_context
  )


def make_learner(config: Any) -> Learner:
  """Makes a learner with a fresh state on all devices.

  Raises:
    UserError: The mesh or the batch does not divide.
  """
  mesh = mesh_lib.make(config.mesh)
  mesh_lib.check_batch(mesh, config.batch_size)
  learner = Learner(
    make_agent(config),
    mesh,
    config.sharding.rules,
    batch_size=config.batch_size,
    seed=config.seed,
  )
  learner.init()
  return learner


def learner(config: Any, repeat: int) -> list[Row]:
  """Measures time, FLOPs, compilation and memory of an update."""
  learner = make_learner(config)
  agent = learner.agent
  steps: Any = learner.steps
  arguments = steps.train_arguments(config.batch_length)
  count = flops.count(steps.train, *arguments)
  start = clock()
  compiled = steps.train.lower(*arguments).compile()
  compile_s = clock() - start
  steps.train = compiled
  batches = map(learner.put, random_batches(agent, config))
  seconds, unit = measure(make_update(learner, config), batches, repeat)
  kind = jax.devices()[0].device_kind
  peak = flops.peak_flops(kind)
  row = {
    **_describe(config, agent),
    'batch': f'{config.batch_size}x{config.batch_length}',
    'parameters': sum(learner.parameter_counts().values()),
    'ms': 1e3 * seconds,
    'units': seconds / unit,
    'unit_ms': 1e3 * unit,
    'steps_per_s': config.batch_size * config.batch_length / seconds,
    'gflops': count.total / 1e9,
    'matmul_gflops': count.matmul / 1e9,
    'mfu': count.matmul / seconds / peak / len(jax.devices()) if peak else None,
    'compile_s': compile_s,
    **_memory(compiled),
  }
  return [row]


def make_update(learner: Learner, config: Any) -> Callable[[Any], None]:
  """Returns a function that trains on a batch and waits for the result."""
  stepid = np.zeros((config.batch_size, config.batch_length), np.int64)

  def update(batch):
    learner.update(batch, stepid)
    learner.flush()

  return update


def policy(config: Any, repeat: int) -> list[Row]:
  """Measures a policy step from host observations to host actions."""
  agent = make_agent(config)
  state = jax.jit(agent.init)(jax.random.key(config.seed))
  used = {k: state['params'][k] for k in ('encoder', 'rssm', 'policy')}
  params = jax.tree.map(lambda x: x.astype(agent.dtype), used)
  rows = []
  for envs in POLICY_BATCHES:
    act = PolicyStep(agent, envs, seed=config.seed)
    act.params = params
    data = random_steps(agent, (envs,), np.random.default_rng(config.seed))
    seconds, unit = measure(act, itertools.repeat(data), repeat)
    rows.append(
      {
        **_describe(config, agent),
        'envs': envs,
        'ms': 1e3 * seconds,
        'units': seconds / unit,
        'steps_per_s': envs / seconds,
      }
    )
  return rows


def measure(
  run: Callable[[Any], Any], inputs: Iterator[Any], repeat: int
) -> tuple[float, float]:
  """Measures `run` in turns with the reference matmul, after one warm-up each.

  Args:
    run: The function to measure.
    inputs: One input per call; computed before the clock starts.
    repeat: Number of measured calls.

  Returns:
    Median seconds of `run` and of the reference matmul.
  """
  reference = reference_matmul()
  times: list[float] = []
  units: list[float] = []
  for _ in range(repeat + 1):
    data = jax.block_until_ready(next(inputs))
    times.append(timed(run, data))
    units.append(timed(reference))
  return statistics.median(times[1:]), statistics.median(units[1:])


def reference_matmul() -> Callable[[], Any]:
  """Returns a function that multiplies two float32 1024x1024 matrices."""
  shape = (REFERENCE_SIZE, REFERENCE_SIZE)
  matrix = jax.random.normal(jax.random.key(0), shape, jnp.float32)
  product = jax.jit(lambda x: x @ x)
  return lambda: product(matrix)


def timed(run: Callable[..., Any], *args: Any) -> float:
  """Returns the seconds until the result of `run(*args)` is ready."""
  start = clock()
  jax.block_until_ready(run(*args))
  return clock() - start


def random_batches(agent: Agent, config: Any) -> Iterator[dict]:
  """Yields random batches in the format of the replay, without end."""
  rng = np.random.default_rng(config.seed)
  shape = (config.batch_size, agent.context + config.batch_length)
  while True:
    batch = random_steps(agent, shape, rng)
    batch['consec'] = np.zeros(config.batch_size, np.int32)
    yield batch


def random_steps(
  agent: Agent, shape: tuple[int, ...], rng: np.random.Generator
) -> dict[str, np.ndarray]:
  """Returns random steps in the format of the replay, arrays [*shape, ...]."""
  classes = {k: v.classes for k, v in agent.act_space.items()}
  classes |= {k: v.classes for k, v in agent.obs_space.items()}
  classes['latent/stoch'] = agent.config.rssm.classes
  steps = {}
  for key, (inner, dtype) in step_spec(agent).items():
    size = (*shape, *inner)
    if dtype == 'bool':
      steps[key] = rng.random(size) < 0.01
    elif np.issubdtype(np.dtype(dtype), np.integer):
      steps[key] = rng.integers(0, classes.get(key) or 256, size).astype(dtype)
    else:
      steps[key] = np.tanh(rng.normal(size=size)).astype(dtype)
  return steps


def _describe(config: Any, agent: Agent) -> Row:
  devices = jax.devices()
  return {
    'task': config.task,
    'units_per_layer': config.agent.rssm.hidden,
    'dtype': agent.dtype.name,
    'device': f'{len(devices)} x {devices[0].device_kind}',
    'jax': jax.__version__,
  }


def _memory(compiled: Any) -> Row:
  """Returns the memory of the compiled update and the peak of the device."""
  sizes = compiled.memory_analysis()
  gib = 2**30
  row = {
    'temporaries_gib': sizes.temp_size_in_bytes / gib,
    'arguments_gib': sizes.argument_size_in_bytes / gib,
    'outputs_gib': sizes.output_size_in_bytes / gib,
    'donated_gib': sizes.alias_size_in_bytes / gib,
  }
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    row['device_peak_gib'] = stats['peak_bytes_in_use'] / gib
  return row
