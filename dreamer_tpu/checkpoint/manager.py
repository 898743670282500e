"""Saving without stopping the run, in commits that are whole or absent."""

import contextlib
import dataclasses
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from dreamer_tpu.checkpoint import checksums, layout, restore, retention
from dreamer_tpu.checkpoint.lock import Lock
from dreamer_tpu.checkpoint.textfile import TextFile, replay_file
from dreamer_tpu.errors import UserError

Manifests = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """How a save ended.

  Attributes:
    step: The step it was for.
    error: One line if it failed, '' if the step is committed.
    blocking_s: Seconds for which `save` held up its caller.
    total_s: Seconds until the commit, or the failure.
    bytes: Size of the step folder, without the replay's chunk files.
  """

  step: int
  error: str
  blocking_s: float
  total_s: float
  bytes: int


class Checkpointer:
  """The `checkpoints/` folder of a run that saves; a context manager.

  All methods belong to the main thread, of every process in the same order.
  To only read a checkpoint, use `layout`, `restore` and `partial` instead.
  """

  def __init__(
    self,
    directory: layout.PathLike,
    *,
    keep: int = 2,
    keep_every: int = 0,
    keep_best: int = 0,
    timeout: float = 600.0,
    on_commit: Callable[[Manifests], None] | None = None,
  ):
    """Opens or creates the folder and removes what broken saves left.

    Args:
      directory: `LOGDIR/checkpoints`, local or gs://.
      keep: The newest steps to keep.
      keep_every: See `retention.policy`; as `keep_best`. Both keep the agent
        and the run state for good, the replay only as long as `keep` does.
      keep_best: See there.
      timeout: Seconds that processes wait for each other in a save.
      on_commit: Called in the background after each commit with the replay
        manifests of all folders that are kept, those put aside as damaged
        too: {folder's name: {shard: manifest}}. The next save waits for it,
        so it may delete chunks that none of them names.

    Raises:
      UserError: The folder cannot be written, or another run is using it.
    """
    self.directory = layout.absolute(directory)
    try:
      self.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(
        f"Cannot write checkpoints to '{self.directory}' "
        f'({layout.one_line(error)}); choose another logdir.'
      ) from error
    self._lock = Lock(self.directory)
    logging.get_absl_logger().addFilter(_not_from_orbax)
    self._on_commit = on_commit
    self._keep = keep
    self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    self._thread: threading.Thread | None = None
    self._current: int | None = None
    self._failed = False
    context = ocp.Context()
    context.asynchronous.timeout_secs = int(timeout)
    # In the background, a folder that cannot be made holds up the end of the
    # process by minutes; but here, it would hold up the other processes.
    several = jax.process_count() > 1
    context.asynchronous.create_directories_asynchronously = several
    self._orbax = ocp.training.Checkpointer(
      self.directory,
      context=context,
      preservation_policy=retention.policy(keep, keep_every, keep_best),
      cleanup_tmp_directories=True,
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc) -> None:
    self.close()

  def steps(self) -> list[int]:
    """Committed steps, ascending."""
    return layout.steps(self.directory)

  def latest(self) -> int | None:
    """The newest committed step, or None."""
    return max(self.steps(), default=None)

  def traces(self) -> list[int]:
    """`steps`, and those of them that have lost files since."""
    return layout.traces(self.directory)

  def saving(self) -> bool:
    """Whether a save is still being written."""
    return self._thread is not None and self._thread.is_alive()

  def has_replay(self, step: int) -> bool:
    """Whether a run can go on from a step, because its replay was kept."""
    return layout.has_replay(self.directory / str(step))

  def set_aside(self, step: int) -> None:
    """Renames a damaged step, so that it is no step any more; all processes.

    The chunks that it names stay as long as its folder.
    """
    folder = self.directory / str(step)
    if jax.process_index() == 0:
      other = len(list(self.directory.glob(f'{step}.{layout.ASIDE}*')))
      suffix = f'{layout.ASIDE}{other + 1 if other else ""}'
      target = self.directory / f'{step}.{suffix}'
      folder.rename(target)
      logging.warning(
        "The damaged checkpoint was put aside as '%s'; delete it when you no "
        'longer need it.',
        target,
      )
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f'set aside {step}')
    self._orbax.reload()

  def restore(
    self,
    step: int,
    abstract: Any,
    config: Mapping[str, Any] | None = None,
    carry: Any = None,
  ) -> restore.Restored:
    """Reads a committed step; see `restore.restore`.

    The run goes on from there: newer steps are given up at the next save.
    """
    if step not in self.traces():
      raise UserError(
        f"No checkpoint of step {step} in '{self.directory}', which holds "
        f'{self.steps()}.'
      )
    folder = self.directory / str(step)
    restored = restore.restore(folder, abstract, config, carry)
    self._current = step
    return restored

  def save(
    self,
    step: int,
    agent: Any,
    run: Mapping[str, Any],
    write_replay: Callable[[], dict[str, Any]] | None = None,
    *,
    carry: Any = None,
    score: float | None = None,
  ) -> None:
    """Starts a save and returns once the arrays are copied off the devices.

    Waits for the previous save first. Does nothing if the run stands at
    `step` already, because it was restored from there or has saved it.

    Args:
      step: Agent steps; the name of the step folder.
      agent: Nested dict of jax arrays. They may be donated right afterwards.
      run: JSON values; copied before this returns.
      write_replay: Writes this process's new replay chunks and returns their
        manifest. Runs in the background, and always before the commit.
      carry: As `agent`, of sequences that are trained in parts.
      score: Of an evaluation, by which the best steps are kept.

    Raises:
      UserError: The folder holds newer steps of another run.
      TypeError: `run` is not JSON.
    """
    start = time.perf_counter()
    text = json.dumps(run)
    if self.saving():
      logging.warning(
        'Waiting for the previous checkpoint before saving step %d; saves '
        'take longer than the interval between them.',
        step,
      )
    self._join()
    if step == self._current:
      logging.info('Step %d is saved already.', step)
      return
    self._give_up_newer(step)
    items = {
      layout.AGENT: agent,
      layout.RUN: TextFile(layout.RUN_FILE, lambda: text, shared=True),
      layout.REPLAY: replay_file(write_replay),
    }
    if carry is not None:
      items[layout.CARRY] = carry
    try:
      response = self._orbax.save_checkpointables_async(
        step, items, force=True, metrics=retention.metrics(score)
      )
    except (OSError, RuntimeError, ValueError) as error:
      self._record(step, start, time.perf_counter() - start, error)
      return
    blocking = time.perf_counter() - start
    self._thread = threading.Thread(
      target=self._finish,
      args=(step, response, start, blocking),
      name='checkpoint',
    )
    self._thread.start()

  def poll(self) -> list[Outcome]:
    """Outcomes of the saves that ended since the last call, without waiting."""
    outcomes = []
    while not self._outcomes.empty():
      outcomes.append(self._outcomes.get())
    return outcomes

  def wait(self) -> list[Outcome]:
    """Waits for the save in progress, then as `poll`."""
    self._join()
    return self.poll()

  def close(self) -> None:
    """Waits for the save in progress and lets go of the folder."""
    self._join()
    self._orbax.close()
    self._lock.release()

  def _join(self) -> None:
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    if self._failed:
      self._failed = False
      # Orbax raises the recorded error once more in this thread, and has
      # dropped older steps from its list as if the save had worked.
      with contextlib.suppress(Exception):
        self._orbax.wait()
      self._orbax.reload()

  def _give_up_newer(self, step: int) -> None:
    newer = [x for x in self.steps() if x >= step]
    if not newer:
      return
    if self._current is None or self._current >= step:
      raise UserError(
        f"'{self.directory}' already holds checkpoints of steps {newer}; "
        'resume from them or choose another logdir.'
      )
    for stale in newer:
      logging.warning(
        'Removing the checkpoint of step %d: the run was resumed from step '
        '%d and has now reached step %d.',
        stale,
        self._current,
        step,
      )
      self._orbax.delete(stale, missing_ok=True)

  def _finish(self, step, response, start, blocking) -> None:
    try:
      response.result()
    except Exception as error:  # whatever it is, the run must hear of it
      self._record(step, start, blocking, error)
      return
    self._current = step
    self._record(step, start, blocking, None)
    try:
      self._committed(step)
    except Exception as error:  # nor may this end in a thread that nobody reads
      logging.warning(
        'Step %d is saved, but what followed failed: %s',
        step,
        layout.one_line(error),
      )

  def _committed(self, step: int) -> None:
    checksums.write(self.directory / str(step))
    kept = [self.directory / str(x) for x in self.steps()]
    if jax.process_index() == 0:
      for folder in kept[: -self._keep]:
        if layout.has_replay(folder):
          retention.release(folder)
    if self._on_commit is not None:
      manifests = {x.name: layout.read_manifests(x) for x in kept}
      for folder in layout.aside(self.directory):
        with contextlib.suppress(ValueError, OSError):
          manifests[folder.name] = layout.read_manifests(folder)
      self._on_commit(manifests)

  def _record(self, step, start, blocking, error: Exception | None) -> None:
    outcome = Outcome(
      step=step,
      error=_reason(error) if error else '',
      blocking_s=blocking,
      total_s=time.perf_counter() - start,
      bytes=0 if error else layout.size(self.directory / str(step)),
    )
    if error:
      self._failed = True
      logging.warning(
        'Saving step %d failed: %s. The run goes on; the newest checkpoint is '
        'of step %s.',
        step,
        outcome.error,
        self.latest(),
      )
    self._outcomes.put(outcome)


def _not_from_orbax(record: Any) -> bool:
  """Failures are told in a line of ours; Orbax's are pages long."""
  return logging.level_debug() or '/orbax/' not in record.pathname


def _reason(error: Exception) -> str:
  text = layout.one_line(error)
  if 'DEADLINE_EXCEEDED' in text or 'barrier' in text:
    return f'another process failed to save or took too long ({text})'
  return text
