"""Load or save: the whole run in one checkpoint."""

import dataclasses
from collections.abc import Callable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from dreamer_tpu.agent import Agent
from dreamer_tpu.checkpoint.manager import Checkpointer, Manifests, Outcome
from dreamer_tpu.checkpoint.partial import restore_partial
from dreamer_tpu.errors import UserError
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.replay import Replay
from dreamer_tpu.replay.snapshot import Snapshot

State = dict[str, Any]


class Saver:
  """Saves agent, replay and counters of a run, and restores them.

  A context manager that waits for the save in progress when it ends.

  Args:
    config: Of the run.
    logdir: Of the run.
    learner: Whose state is saved.
    replay: Whose steps are saved.
  """

  def __init__(
    self,
    config: ConfigDict,
    logdir: epath.Path,
    learner: Learner,
    replay: Replay,
  ):
    self._config = config
    self._learner = learner
    self._replay = replay
    self._folder = logdir / 'replay'
    self._snapshot: Snapshot | None = None
    self._outcomes: list[Outcome] = []
    self._checkpointer = Checkpointer(
      logdir / 'checkpoints',
      keep=config.checkpoint.keep,
      timeout=config.checkpoint.timeout,
      on_commit=self._prune,
    )

  def __enter__(self) -> 'Saver':
    return self

  def __exit__(self, *exc: object) -> None:
    self._checkpointer.close()

  def load_or_init(self, say: Callable[[str], None]) -> State:
    """Restores the newest checkpoint, or makes a fresh agent.

    Args:
      say: Shows a status line.

    Returns:
      The `run` state that was saved, empty for a fresh run.

    Raises:
      UserError: The checkpoint does not fit the configuration.
    """
    step = self._checkpointer.latest()
    if step is None:
      self._learner.init()
      if self._config.run.from_checkpoint:
        self._load_parts(say)
      return {}
    say(f'Restoring the checkpoint of step {step:,}.')
    restored = self._checkpointer.restore(
      step, self._learner.abstract, self._config.to_dict()
    )
    self._learner.state = restored.agent
    self._replay.load(self._folder, list(restored.replay.values()))
    return restored.run

  def save(self, step: int, state: State) -> None:
    """Starts a save; returns when the arrays have left the devices.

    Waits for the save before.

    Args:
      step: Agent steps.
      state: JSON values to find again in `load_or_init`.
    """
    self._outcomes += self._checkpointer.wait()
    if self._snapshot:
      self._snapshot.discard()  # Only has an effect if the save failed.
    self._snapshot = self._replay.snapshot(self._folder)
    state = {
      **state,
      'config': self._config.to_dict(),
      'spaces': spaces_to_json(self._learner.agent),
    }
    self._checkpointer.save(
      step, self._learner.state, state, self._snapshot.write
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

  def _prune(self, kept: Manifests) -> None:
    manifests = [m for shards in kept.values() for m in shards.values()]
    self._replay.prune(self._folder, manifests)


def spaces_to_json(agent: Agent) -> dict[str, Any]:
  """The agent's spaces, to make it again without its environment."""
  groups = {'obs': agent.obs_space, 'act': agent.act_space}
  return {
    group: {k: dataclasses.asdict(v) for k, v in spaces.items()}
    for group, spaces in groups.items()
  }
