"""Saves a run, and restores or initializes it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

import dreamer_tpu
from dreamer_tpu.agent import Agent
from dreamer_tpu.checkpoint import layout
from dreamer_tpu.checkpoint.manager import Checkpointer, SaveResult
from dreamer_tpu.checkpoint.partial import check_exists, restore_partial
from dreamer_tpu.checkpoint.restore import check_fit, config_differences
from dreamer_tpu.checkpoint.shard import LOCAL, Shard
from dreamer_tpu.envs import Conversion
from dreamer_tpu.errors import UserError
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.policy import trained_spaces
from dreamer_tpu.replay import Replay

State = dict[str, Any]


class Saver:
  """Saves agent, replay and counters of a run, and restores them.

  A context manager that waits for the save in progress when it ends.

  Args:
    config: Configuration of the run.
    logdir: Directory of the run.
    learner: Learner, whose state is saved.
    replay: Training replay of this host.
    eval_replay: Evaluation replay of this host, if there is one.
    conversion: Conversion of the spaces of the environments, if there are any.
    gather: Returns the values of all processes, as `HostSync.gather`.
  """

  def __init__(
    self,
    config: ConfigDict,
    logdir: epath.Path,
    learner: Learner,
    replay: Replay,
    eval_replay: Replay | None = None,
    *,
    conversion: Conversion | None = None,
    gather: Callable[[Any], Sequence[Any]] = lambda value: [value],
  ):
    self._config = config
    self._learner = learner
    self._conversion = conversion
    self._has_carry = config.consec_train > 1
    self._shard = Shard(logdir, replay, eval_replay)
    self._results: list[SaveResult] = []
    self._warned = False
    # Name of the newest checkpoint, and its steps and updates.
    self._newest = (-1, (-1, -1))
    self._checkpointer = Checkpointer(
      logdir / 'checkpoints',
      keep=config.checkpoint.keep,
      keep_every=config.checkpoint.keep_every,
      keep_best=config.checkpoint.keep_best,
      timeout=config.checkpoint.timeout,
      on_commit=self._shard.prune,
      gather=gather,
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc: object) -> None:
    self._checkpointer.close()

  def load_or_init(self, log_status: Callable[[str], None]) -> State:
    """Restores the newest intact checkpoint, or initializes a new agent.

    Args:
      log_status: Shows a status line.

    Returns:
      The state that was passed to `save`; empty for a new run. Under LOCAL it
      has this process's state, if the steps of its replay kept their addresses.

    Raises:
      UserError: The checkpoint does not fit the configuration, or none can be
        read.
    """
    if not layout.committed_steps(self._checkpointer.directory):
      init_learner(self._config, self._learner, log_status)
      return {}

    def attempt(step: int) -> State:
      log_status(f'Restoring the checkpoint of step {step:,}.')
      return self._load(step)

    return self._checkpointer.restore_newest(attempt)

  def ready(self, *, warn: bool = True) -> bool:
    """Returns whether the previous save has ended; if not, warns once.

    `save` would wait for it, so a periodic save is skipped if any host is not
    ready.

    Args:
      warn: Whether the save is a periodic one, of which the user is warned.
    """
    if not self._checkpointer.saving():
      return True
    if not warn:
      return False
    if not self._warned:
      logging.warning(
        'Writing a checkpoint takes longer than run.save_every=%g seconds; '
        'skipping saves until it is done.',
        self._config.run.save_every,
      )
    self._warned = True
    return False

  def save(
    self,
    step: int,
    state: State,
    local: State | None = None,
    score: float | None = None,
  ) -> None:
    """Starts a save and returns once the arrays have left the devices.

    Waits for the previous save.

    Args:
      step: Agent steps, the name of the checkpoint. If that name is taken and
        steps or updates were made since, the next number is used.
      state: JSON values of the run, shared by all processes.
      local: JSON values of this process, valid only with the replay as it is,
        such as the states of streams.
      score: Evaluation score, by which the best checkpoints are kept. All
        processes must pass the same.
    """
    self._results += self._checkpointer.wait()
    self._warned = False
    write_replay = self._shard.snapshot(local)
    agent = self._learner.agent
    state = state | describe_agent(self._config, agent, self._conversion)
    counters = (step, state['update'])
    name, saved = self._newest
    if step <= name:
      step = name + (counters != saved)
    self._newest = (step, counters)
    self._checkpointer.save(
      step,
      self._learner.state,
      state,
      write_replay,
      carry=self._learner.carry if self._has_carry else None,
      score=score,
      replay_bytes=self._shard.planned_bytes,
    )

  def poll(self) -> dict[str, float]:
    """Returns metrics of the saves that ended since the last call."""
    results = self._results + self._checkpointer.poll()
    self._results = []
    if not results:
      return {}
    return {
      'checkpoint/blocking_s': results[-1].blocking_s,
      'checkpoint/total_s': results[-1].total_s,
      'checkpoint/bytes': float(results[-1].bytes),
      'checkpoint/failed': float(bool(results[-1].error)),
    }

  def finish(self) -> dict[str, float]:
    """Waits for the save in progress and returns its metrics.

    Raises:
      UserError: It failed.
    """
    self._results += self._checkpointer.wait()
    last = self._results[-1] if self._results else None
    if last and last.error:
      raise UserError(
        f'Saving the last checkpoint, of step {last.step}, failed '
        f'({last.error}); fix this and run the same command to resume from the '
        'previous one.'
      )
    return self.poll()

  def settle(self) -> str:
    """Waits on any thread for the save in progress; describes the newest."""
    step = self._checkpointer.settle()
    if step is None:
      return 'there is no checkpoint'
    return f'the newest checkpoint is of step {step:,}'

  def _load(self, step: int) -> State:
    restored = self._checkpointer.restore(
      step,
      self._learner.abstract,
      self._config.to_dict(),
      _abstract(self._learner.carry) if self._has_carry else None,
    )
    run = restored.run
    self._newest = (step, (run.get('step', step), run.get('update', 0)))
    local = self._shard.load(restored.replay)
    self._learner.state = restored.agent
    if self._has_carry:
      if local is None or restored.carry is None:
        return restored.run  # Starts new sequences.
      self._learner.carry = restored.carry
    return restored.run if local is None else {**restored.run, LOCAL: local}


def init_learner(
  config: ConfigDict, learner: Learner, log_status: Callable[[str], None]
) -> None:
  """Initializes an agent, with the parts that `run.from_checkpoint` names.

  Args:
    config: Configuration of the run.
    learner: Learner without a state.
    log_status: Shows a status line.
  """
  parts = _load_parts(config, learner, log_status)
  learner.init()
  if parts:
    fresh = learner.state
    learner.state = {**fresh, **_merge(parts, fresh)}


def _load_parts(
  config: ConfigDict, learner: Learner, log_status: Callable[[str], None]
) -> State:
  """Loads part of the agent from `run.from_checkpoint`, if it is set.

  Returns:
    Parts of the state, with shapes in place of leaves that were not loaded.
  """
  run = config.run
  if not run.from_checkpoint:
    return {}
  abstract = learner.abstract
  rest = {k: abstract[k] for k in ('slow_value', 'retnorm')}
  tree, report = restore_partial(
    run.from_checkpoint,
    run.from_checkpoint_regex,
    {**abstract['params'], **rest},
    run.from_checkpoint_mismatch,
  )
  for line in report.lines():
    log_status(line)
  rest = {k: tree.pop(k) for k in rest}
  return {'params': tree, **rest}


def check_start(config: ConfigDict, logdir: epath.Path) -> None:
  """Checks the checkpoint to start from, before the environments are made.

  Takes the spaces from the checkpoint. Those of the environments are compared
  when it is restored.

  Raises:
    UserError: The logdir holds another task or agent, or `run.from_checkpoint`
      holds no checkpoint.
  """
  directory = logdir / 'checkpoints'
  steps = [
    directory / str(step)
    for step in layout.committed_steps(directory)
    if layout.has_replay(directory / str(step))
  ]
  if steps:
    _check_agent(config, steps[-1])
  elif config.run.from_checkpoint:
    check_exists(config.run.from_checkpoint)


def _check_agent(config: ConfigDict, folder: epath.Path) -> None:
  """Raises UserError if a step is of another task or agent."""
  try:
    run, shapes = layout.read_run(folder), layout.read_shapes(folder)
  except (ValueError, OSError, layout.CorruptCheckpoint):
    return  # Handled when it is restored.
  changes = config_differences(run['config'], config.to_dict())
  if any(change.startswith(('task ', 'agent.')) for change in changes):
    agent = Agent(*trained_spaces(run), config.agent)
    abstract = jax.eval_shape(agent.init, jax.random.key(0))
    check_fit(folder, run, shapes, abstract, config.to_dict())


def _merge(parts: State, fresh: State) -> State:
  """Returns the loaded leaves of `parts`, and those of `fresh` otherwise."""
  return jax.tree.map(
    lambda part, leaf: part if isinstance(part, jax.Array) else leaf,
    parts,
    {k: fresh[k] for k in parts},
  )


def _abstract(tree: Any) -> Any:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def describe_agent(
  config: ConfigDict, agent: Agent, conversion: Conversion | None
) -> State:
  """Returns the state of a checkpoint that tells how to make its agent."""
  state = {
    'version': dreamer_tpu.__version__,
    'config': config.to_dict(),
    'spaces': spaces_to_json(agent),
  }
  if conversion:
    state['conversion'] = conversion.to_json()
  return state


def spaces_to_json(agent: Agent) -> dict[str, Any]:
  """Returns the agent's spaces, to make it without its environment."""
  groups = {'obs': agent.obs_space, 'act': agent.act_space}
  return {
    group: {k: dataclasses.asdict(v) for k, v in spaces.items()}
    for group, spaces in groups.items()
  }
