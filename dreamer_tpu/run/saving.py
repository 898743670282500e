"""Saves a run, and restores or initializes it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from dreamer_tpu.agent import Agent
from dreamer_tpu.checkpoint import layout
from dreamer_tpu.checkpoint.manager import Checkpointer, SaveResult
from dreamer_tpu.checkpoint.partial import restore_partial
from dreamer_tpu.checkpoint.shard import LOCAL, Shard
from dreamer_tpu.errors import UserError
from dreamer_tpu.learner.learner import Learner
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
  """

  def __init__(
    self,
    config: ConfigDict,
    logdir: epath.Path,
    learner: Learner,
    replay: Replay,
    eval_replay: Replay | None = None,
  ):
    self._config = config
    self._learner = learner
    self._has_carry = config.consec_train > 1
    self._shard = Shard(logdir, replay, eval_replay)
    self._results: list[SaveResult] = []
    self._warned = False
    self._newest = (-1, -1)  # Name and updates of the newest checkpoint.
    self._checkpointer = Checkpointer(
      logdir / 'checkpoints',
      keep=config.checkpoint.keep,
      keep_every=config.checkpoint.keep_every,
      keep_best=config.checkpoint.keep_best,
      timeout=config.checkpoint.timeout,
      on_commit=self._shard.prune,
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc: object) -> None:
    self._checkpointer.close()

  def load_or_init(
    self,
    log_status: Callable[[str], None],
    gather: Callable[[str], Sequence[str]],
  ) -> State:
    """Restores the newest intact checkpoint, or initializes a new agent.

    Args:
      log_status: Shows a status line.
      gather: Returns the values of all processes, as `HostSync.gather`.

    Returns:
      The state that was passed to `save`; empty for a new run. Under LOCAL it
      has this process's state, if the steps of its replay kept their addresses.

    Raises:
      UserError: The checkpoint does not fit the configuration, or none can be
        read.
    """
    if not layout.committed_steps(self._checkpointer.directory):
      self._learner.init()
      if self._config.run.from_checkpoint:
        self._load_parts(log_status)
      return {}

    def attempt(step: int) -> State:
      log_status(f'Restoring the checkpoint of step {step:,}.')
      return self._load(step)

    return self._checkpointer.restore_newest(attempt, gather)

  def ready(self) -> bool:
    """Returns whether the previous save has ended; if not, warns once.

    `save` would wait for it, so a periodic save is skipped if any host is not
    ready.
    """
    if not self._checkpointer.saving():
      return True
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
        only updates were made since, the next number is used.
      state: JSON values of the run, shared by all processes.
      local: JSON values of this process, valid only with the replay as it is,
        such as the states of streams.
      score: Evaluation score, by which the best checkpoints are kept. All
        processes must pass the same.
    """
    self._results += self._checkpointer.wait()
    self._warned = False
    write_replay = self._shard.snapshot(local)
    state = {
      **state,
      'config': self._config.to_dict(),
      'spaces': spaces_to_json(self._learner.agent),
    }
    name, updates = self._newest
    if step <= name:
      step = name + (state['update'] != updates)
    self._newest = (step, state['update'])
    self._checkpointer.save(
      step,
      self._learner.state,
      state,
      write_replay,
      carry=self._learner.carry if self._has_carry else None,
      score=score,
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

  def _load(self, step: int) -> State:
    restored = self._checkpointer.restore(
      step,
      self._learner.abstract,
      self._config.to_dict(),
      _abstract(self._learner.carry) if self._has_carry else None,
    )
    self._newest = (step, restored.run.get('update', 0))
    local = self._shard.load(restored.replay)
    self._learner.state = restored.agent
    if self._has_carry:
      if local is None or restored.carry is None:
        return restored.run  # Starts new sequences.
      self._learner.carry = restored.carry
    return restored.run if local is None else {**restored.run, LOCAL: local}

  def _load_parts(self, log_status: Callable[[str], None]) -> None:
    """Initializes part of the agent from `run.from_checkpoint`."""
    state = self._learner.state
    tree = {
      **state['params'],
      'slow_value': state['slow_value'],
      'retnorm': state['retnorm'],
    }
    run = self._config.run
    tree, report = restore_partial(
      run.from_checkpoint, run.from_checkpoint_regex, tree
    )
    for line in report.lines():
      log_status(line)
    rest = {k: tree.pop(k) for k in ('slow_value', 'retnorm')}
    self._learner.state = {**state, 'params': tree, **rest}


def _abstract(tree: Any) -> Any:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def spaces_to_json(agent: Agent) -> dict[str, Any]:
  """Returns the agent's spaces, to make it without its environment."""
  groups = {'obs': agent.obs_space, 'act': agent.act_space}
  return {
    group: {k: dataclasses.asdict(v) for k, v in spaces.items()}
    for group, spaces in groups.items()
  }
