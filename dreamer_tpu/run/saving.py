"""Load or save: the whole run in one checkpoint."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from dreamer_tpu.agent import Agent
from dreamer_tpu.checkpoint.fallback import restore_newest
from dreamer_tpu.checkpoint.manager import Checkpointer, Outcome
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
    config: Of the run.
    logdir: Of the run.
    learner: Whose state is saved.
    replay: Whose steps are saved.
    eval_replay: The same for the steps of evaluations, if they are kept.
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
    self._parts = config.consec_train > 1
    self._shard = Shard(logdir, replay, eval_replay)
    self._outcomes: list[Outcome] = []
    self._warned = False
    self._saved = (-1, -1)  # Name and updates of the newest checkpoint.
    self._checkpointer = Checkpointer(
      logdir / 'checkpoints',
      keep=config.checkpoint.keep,
      keep_every=config.checkpoint.keep_every,
      keep_best=config.checkpoint.keep_best,
      timeout=config.checkpoint.timeout,
      on_commit=self._shard.prune,
    )

  def __enter__(self) -> 'Saver':
    return self

  def __exit__(self, *exc: object) -> None:
    self._checkpointer.close()

  def load_or_init(self, say: Callable[[str], None]) -> State:
    """Restores the newest checkpoint, or makes a fresh agent.

    Where the newest one is damaged, the one before it is restored.

    Args:
      say: Shows a status line.

    Returns:
      The `run` state that was saved, empty for a fresh run. It has this
      process's LOCAL if its replay has the addresses that it had.

    Raises:
      UserError: The checkpoint does not fit the configuration, or none can be
        read.
    """
    if not self._checkpointer.traces():
      self._learner.init()
      if self._config.run.from_checkpoint:
        self._load_parts(say)
      return {}

    def attempt(step: int) -> State:
      say(f'Restoring the checkpoint of step {step:,}.')
      return self._load(step)

    return restore_newest(self._checkpointer, attempt)

  def ready(self) -> bool:
    """Whether the save before has ended; says so once if not.

    To be asked before a periodic save, on process 0 for all of them. Where it
    says no the save is left out, as `save` would wait.
    """
    if not self._checkpointer.saving():
      return True
    if not self._warned:
      logging.warning(
        'Writing a checkpoint takes longer than run.save_every=%g seconds; '
        'no other one is begun meanwhile.',
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
    """Starts a save; returns when the arrays have left the devices.

    Waits for the save before.

    Args:
      step: Agent steps, the checkpoint's name; where there is one of that name
        and only updates have been made since, it gets the next number.
      state: JSON values to find again in `load_or_init`, of all processes.
      local: The same of this process, valid only with the replay as it is,
        such as the states of streams.
      score: Of an evaluation, by which the best checkpoints are kept; that of
        process 0 counts.
    """
    self._outcomes += self._checkpointer.wait()
    self._warned = False
    self._shard.freeze(local)
    state = {
      **state,
      'config': self._config.to_dict(),
      'spaces': spaces_to_json(self._learner.agent),
    }
    name, updates = self._saved
    if step <= name:
      step = name + (state['update'] != updates)
    self._saved = (step, state['update'])
    self._checkpointer.save(
      step,
      self._learner.state,
      state,
      self._shard.write,
      carry=self._learner.carry if self._parts else None,
      score=self._shared(score),
    )

  def poll(self) -> dict[str, float]:
    """Metrics of the saves that ended since the last call."""
    self._outcomes += self._checkpointer.poll()
    return self._metrics()

  def finish(self) -> dict[str, float]:
    """Waits for the save in progress; metrics as `poll`.

    Raises:
      UserError: It failed.
    """
    self._outcomes += self._checkpointer.wait()
    last = self._outcomes[-1] if self._outcomes else None
    if last and last.error:
      raise UserError(
        f'The last checkpoint, of step {last.step}, could not be saved '
        f'({last.error}); make room or mend it, and start again to go on from '
        'the one before.'
      )
    return self._metrics()

  def _metrics(self) -> dict[str, float]:
    outcomes, self._outcomes = self._outcomes, []
    metrics = {}
    for outcome in outcomes:
      metrics = {
        'checkpoint/blocking_s': outcome.blocking_s,
        'checkpoint/total_s': outcome.total_s,
        'checkpoint/bytes': float(outcome.bytes),
        'checkpoint/failed': float(bool(outcome.error)),
      }
    return metrics

  def _shared(self, score: float | None) -> float | None:
    """The score that process 0 knows; all decide alike what to keep."""
    if jax.process_count() == 1 or not self._config.checkpoint.keep_best:
      return score
    mine = np.float32(np.nan if score is None else score)
    return float(multihost_utils.broadcast_one_to_all(mine))

  def _load(self, step: int) -> State:
    restored = self._checkpointer.restore(
      step,
      self._learner.abstract,
      self._config.to_dict(),
      _abstract(self._learner.carry) if self._parts else None,
    )
    self._saved = (step, restored.run.get('update', 0))
    local = self._shard.load(restored.replay)
    self._learner.state = restored.agent
    if self._parts and (local is None or restored.carry is None):
      return restored.run  # Sequences begin anew.
    if self._parts:
      self._learner.carry = restored.carry
    return restored.run if local is None else {**restored.run, LOCAL: local}

  def _load_parts(self, say: Callable[[str], None]) -> None:
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
      say(line)
    rest = {k: tree.pop(k) for k in ('slow_value', 'retnorm')}
    self._learner.state = {**state, 'params': tree, **rest}


def _abstract(tree: Any) -> Any:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
  )


def spaces_to_json(agent: Agent) -> dict[str, Any]:
  """The agent's spaces, to make it again without its environment."""
  groups = {'obs': agent.obs_space, 'act': agent.act_space}
  return {
    group: {k: dataclasses.asdict(v) for k, v in spaces.items()}
    for group, spaces in groups.items()
  }
