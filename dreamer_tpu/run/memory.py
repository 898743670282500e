"""Memory of a run on each host, compared with what there is at its start."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
from etils import epath
from ml_collections import ConfigDict

from dreamer_tpu.agent import Agent
from dreamer_tpu.checkpoint import layout
from dreamer_tpu.config import sequence_length
from dreamer_tpu.errors import UserError
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.learner.steps import step_spec
from dreamer_tpu.metrics.system import Usage, memory_limit
from dreamer_tpu.replay import Sampling, step_bytes

# Capacity of the evaluation replay, relative to that of training.
_EVAL_CAPACITY = 0.1
# Growth of the process after its start, in bytes, as measured on a CPU:
# compiled programs and their buffers, more with images and with evaluations,
# and the process that writes TensorBoard's files.
_GROWTH = 0.4e9
_IMAGES = 0.2e9
_EVALUATION = 0.15e9
_TENSORBOARD = 0.28e9
# Share of the limit that a suggested replay may fill.
_SHARE = 0.95


def capacity(config: ConfigDict, hosts: int, *, evaluate: bool = False) -> int:
  """Returns the steps of a host's replay when full.

  Args:
    config: Configuration of the run.
    hosts: Number of hosts.
    evaluate: Whether it is the smaller replay for evaluation.
  """
  share = _EVAL_CAPACITY if evaluate else 1
  return int(config.replay.size * share) // hosts


def sampling(config: ConfigDict) -> Sampling:
  """Returns the distribution over the sequences of a replay."""
  replay = config.replay
  return Sampling(**replay.fracs, **replay.prio, recexp=replay.recexp)


def steps_at_end(config: ConfigDict, checkpoints: epath.Path) -> int:
  """Returns the steps of all hosts' replays at the end of the run, unless full.

  They are those that were imported and those of the run, which takes none if
  it only learns.

  Args:
    config: Configuration of the run.
    checkpoints: Folder of the checkpoints; the newest one counts.
  """
  steps = 0 if config.run.updates else config.run.steps
  for step in layout.steps(checkpoints)[-1:]:
    with contextlib.suppress(OSError, ValueError):
      imported = own = 0
      for manifest in layout.read_manifests(checkpoints / str(step)).values():
        for i, chunks in enumerate(manifest['streams']):
          fill = sum(fill for _, fill, _ in chunks)
          if i in manifest.get('imported', ()):
            imported += fill
          else:
            own += fill
      return imported + max(own, steps)
  return steps


def replay_bytes(
  config: ConfigDict, agent: Agent, hosts: int, steps: int
) -> float:
  """Returns the RAM of a host's replays at the end of the run, in bytes.

  Args:
    config: Configuration of the run.
    agent: Agent whose inputs and latents they store.
    hosts: Number of hosts.
    steps: Steps of all hosts' replays, if they are not full.
  """
  most = min(capacity(config, hosts), math.ceil(steps / hosts))
  if config.script == 'train_eval':
    most += capacity(config, hosts, evaluate=True)
  return most * step_bytes(
    step_spec(agent), config.replay.chunksize, sampling(config)
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
  """Memory of this host at the end of the run, in bytes.

  Attributes:
    replay: Replays for training and evaluation.
    agent: Parameters, optimizer and their copies in the RAM of the host.
    program: Process, its compiled programs, writers and environments.
    limit: Memory that there is.
    source: Source of the limit, 'machine' or 'cgroup'.
  """

  replay: float
  agent: float
  program: float
  limit: float
  source: str

  @property
  def total(self) -> float:
    """Memory of the whole run."""
    return self.replay + self.agent + self.program

  def describe(self) -> str:
    """Returns a status line."""
    return (
      f'Memory at most: {_show(self.total)} of {_show(self.limit)} '
      f'({self.source}): replay {_show(self.replay)}, agent '
      f'{_show(self.agent)}, program and environments {_show(self.program)}.'
    )


def estimate(config: ConfigDict, learner: Learner, steps: int) -> Estimate:
  """Returns the memory that this host needs; environments must have started.

  On an accelerator, the host holds only a copy of the agent while saving.

  Args:
    config: Configuration of the run.
    learner: Learner, before it has a state.
    steps: Steps of all hosts' replays, if they are not full.
  """
  hosts, leaves = jax.process_count(), jax.tree.leaves(learner.abstract)
  agent = float(sum(map(_host_bytes, leaves)))
  on_cpu = jax.default_backend() == 'cpu'
  writes = 'tensorboard' in config.metrics.outputs and not jax.process_index()
  images = any(len(x.shape) == 3 for x in learner.agent.obs_space.values())
  program = 1e9 * Usage().stats()['usage/ram_gb'] + _GROWTH
  program += images * _IMAGES + writes * _TENSORBOARD
  program += (config.script == 'train_eval') * _EVALUATION
  limit, source = memory_limit()
  return Estimate(
    replay=replay_bytes(config, learner.agent, hosts, steps),
    agent=agent * (2 if on_cpu else 1),
    program=program,
    limit=limit,
    source=source,
  )


def check(
  config: ConfigDict,
  learner: Learner,
  gather: Callable[[str], Sequence[str]],
  log_status: Callable[[str], None],
  steps: int,
) -> None:
  """Shows the memory that the run needs, and refuses it if there is less.

  Args:
    config: Configuration of the run.
    learner: Learner, before it has a state.
    gather: Returns the values of all processes, as `HostSync.gather`.
    log_status: Shows a status line.
    steps: Steps of all hosts' replays, if they are not full.

  Raises:
    UserError: A host has too little memory; names a size that fits.
  """
  own = estimate(config, learner, steps)
  log_status(own.describe())
  error = '' if own.total <= own.limit else _refusal(config, own, steps)
  for message in filter(None, gather(error)):
    raise UserError(message)


def _refusal(config: ConfigDict, own: Estimate, steps: int) -> str:
  """Returns the error of a run that does not fit."""
  size = config.replay.size
  rest = own.agent + own.program
  here = f'this machine has {_show(own.limit)}'
  if own.source == 'cgroup':
    here += ' (cgroup limit)'
  share = (_SHARE * own.limit - rest) / max(own.replay, 1)
  filled = share * min(size, steps)
  if filled < config.batch_size * sequence_length(config):
    return (
      f'The run needs {_show(rest)} besides its replay, and {here}; use a '
      'smaller agent or fewer environments, or more memory.'
    )
  when = 'when full' if size <= steps else f'for {steps} steps'
  digits = 10 ** max(0, int(math.log10(filled)) - 1)
  return (
    f'replay.size={size} needs {_show(own.replay)} {when}, and the rest of the '
    f'run {_show(rest)}; {here}: use --config.replay.size='
    f'{int(filled) // digits * digits}.'
  )


def _host_bytes(leaf: jax.ShapeDtypeStruct) -> int:
  """Returns the bytes of an array on the devices of this host.

  Copies on several devices count once, except on the CPU.
  """
  sharding = leaf.sharding
  shard = math.prod(sharding.shard_shape(leaf.shape))
  size = shard * len(sharding.addressable_devices)
  if jax.default_backend() != 'cpu':
    size = min(size, math.prod(leaf.shape))
  return size * leaf.dtype.itemsize


def _show(size: float) -> str:
  if size < 1e8:
    return f'{size / 1e6:.2g} MB'
  return f'{float(f"{size / 1e9:.3g}"):,g} GB'
