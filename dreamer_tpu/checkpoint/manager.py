"""Saves a run asynchronously and atomically, and decides what to keep."""

import contextlib
import dataclasses
import errno
import json
import math
import os
import queue
import re
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

import jax
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from dreamer_tpu import paths
from dreamer_tpu.checkpoint import checksums, layout, retention
from dreamer_tpu.checkpoint.lock import lock
from dreamer_tpu.checkpoint.restore import (
  Restored,
  restore_newest,
  restore_step,
)
from dreamer_tpu.errors import UserError

T = TypeVar('T')
Manifests = dict[str, dict[str, Any]]

_METADATA_BYTES = 2**24  # More than a step takes besides its arrays.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveResult:
  """Result of a save.

  Attributes:
    step: Step that was saved.
    error: Error in one line, '' if the step is committed.
    blocking_s: Seconds for which `save` blocked its caller.
    total_s: Seconds until the commit or the failure.
    bytes: Size of the step folder, without the replay's chunk files.
  """

  step: int
  error: str
  blocking_s: float
  total_s: float
  bytes: int


class Checkpointer:
  """Saves to and restores from `checkpoints/` of a run; a context manager.

  All processes must call the same methods in the same order, from the main
  thread. To only read a checkpoint, use `layout`, `restore` and `partial`.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    *,
    keep: int = 2,
    keep_every: int = 0,
    keep_best: int = 0,
    timeout: float = 600.0,
    on_commit: Callable[[Manifests], None] | None = None,
    gather: Callable[[Any], Sequence[Any]] = lambda value: [value],
  ):
    """Opens or creates the folder and removes unfinished saves.

    Args:
      directory: `LOGDIR/checkpoints`, local or gs://.
      keep: Number of newest steps to keep, with their replay.
      keep_every: Keeps, without replay, the first step and then each that is
        at least this many agent steps after the last one kept; 0 disables.
      keep_best: Number of steps with the highest scores to keep, without
        replay; later steps win ties.
      timeout: Seconds that processes wait for each other in a save.
      on_commit: Called in the background after each commit with the replay
        manifests of all folders, quarantined ones included: {folder name:
        {process: manifest}}. It may delete chunk files that none of them
        names: the next save waits for it.
      gather: Returns the JSON values of all processes, as `HostSync.gather`.

    Raises:
      UserError: The folder cannot be written, or another run uses it.
    """
    self.directory = layout.absolute(directory)
    try:
      self.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(
        f"Cannot write checkpoints to '{self.directory}' "
        f'({layout.one_line(error)}); choose another logdir.'
      ) from error
    self._lock = lock(self.directory)
    logging.get_absl_logger().addFilter(_not_from_orbax)
    warnings.filterwarnings('ignore', 'coroutine .* was never awaited')
    self._unraisablehook = sys.unraisablehook
    sys.unraisablehook = self._report_unraisable
    self._on_commit = on_commit
    self._gather = gather
    self._keep = keep
    self._results: queue.SimpleQueue[SaveResult] = queue.SimpleQueue()
    self._thread: threading.Thread | None = None
    self._current: int | None = None
    self._failed = False
    self._told = ''  # Reason of the failures since the last commit.
    context = ocp.Context()
    context.asynchronous.timeout_secs = int(timeout)
    # If the folder cannot be created in the background, Orbax delays the exit
    # of the process by minutes; if not in the background, other processes.
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

  def __exit__(self, *exc: object) -> None:
    self.close()

  def steps(self) -> list[int]:
    """Returns the committed steps, ascending."""
    return layout.steps(self.directory)

  def saving(self) -> bool:
    """Returns whether a save is in progress."""
    return self._thread is not None and self._thread.is_alive()

  def restore(
    self,
    step: int,
    abstract: Any,
    config: Mapping[str, Any] | None = None,
    carry: Any = None,
  ) -> Restored:
    """Reads a committed step; see `restore_step`.

    The run resumes from there: the next save deletes newer steps.
    """
    if step not in layout.committed_steps(self.directory):
      raise UserError(
        f"No checkpoint of step {step} in '{self.directory}', which holds "
        f'{self.steps()}.'
      )
    restored = restore_step(self._folder(step), abstract, config, carry)
    self._current = step
    return restored

  def restore_newest(self, attempt: Callable[[int], T]) -> T:
    """Restores the newest intact step; see `restore.restore_newest`."""
    result = restore_newest(self.directory, attempt, self._gather)
    self._orbax.reload()
    return result

  def save(
    self,
    step: int,
    agent: Any,
    run: Mapping[str, Any],
    write_replay: Callable[[], dict[str, Any]] | None = None,
    *,
    carry: Any = None,
    score: float | None = None,
    replay_bytes: int = 0,
  ) -> None:
    """Starts a save and returns once the arrays are copied off the devices.

    Waits for the previous save first. Does nothing if `step` was the last to
    be saved or restored.

    Args:
      step: Agent steps; the name of the step folder.
      agent: Nested dict of JAX arrays. They may be donated right afterwards.
      run: JSON values; copied before this returns.
      write_replay: Writes this process's new replay chunks and returns their
        manifest. Runs in the background before the commit.
      carry: Nested dict of JAX arrays of sequences trained in parts.
      score: Evaluation score that decides which steps are the best.
      replay_bytes: Bytes that `write_replay` writes, for messages.

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
      logging.info('Step %d is already saved.', step)
      return
    self._delete_newer(step)
    index = jax.process_index()
    arrays = jax.tree.leaves((agent, carry))
    self._needed = replay_bytes + sum(x.nbytes for x in arrays)
    items = {
      layout.AGENT: agent,
      layout.RUN: _TextFile(layout.RUN_FILE, None if index else lambda: text),
      layout.REPLAY: _TextFile(
        f'{index}.json',
        lambda: json.dumps(write_replay() if write_replay else {}),
      ),
    }
    if carry is not None:
      items[layout.CARRY] = carry
    metrics = None
    if score is not None and math.isfinite(score):
      metrics = {layout.SCORE: float(score)}
    try:
      self._check_space()
      response = self._orbax.save_checkpointables_async(
        step, items, force=True, metrics=metrics
      )
    except (OSError, RuntimeError, ValueError) as error:
      self._record(step, start, time.perf_counter() - start, error)
      self._remove_unfinished(step)
      return
    blocking = time.perf_counter() - start
    self._thread = threading.Thread(
      target=self._finish,
      args=(step, response, start, blocking),
      name='checkpoint',
    )
    self._thread.start()

  def poll(self) -> list[SaveResult]:
    """Returns results of saves that ended since the last call."""
    return [self._results.get() for _ in range(self._results.qsize())]

  def wait(self) -> list[SaveResult]:
    """Waits for the save in progress and returns results like `poll`."""
    self._join()
    return self.poll()

  def settle(self) -> int | None:
    """Waits on any thread for the save in progress, to end the process.

    Returns:
      The newest committed step, None if there is none.
    """
    thread = self._thread
    if thread is not None:
      thread.join()
    return max(self.steps(), default=None)

  def close(self) -> None:
    """Waits for the save in progress and unlocks the folder."""
    self._join()
    with contextlib.suppress(OSError):  # Of a failed save, once more.
      self._orbax.close()
    sys.unraisablehook = self._unraisablehook
    if self._lock is not None:
      os.close(self._lock)
      self._lock = None

  def _folder(self, step: int) -> epath.Path:
    return self.directory / str(step)

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

  def _check_space(self) -> None:
    """Raises an OSError on all processes if the disk is full on any.

    Where one alone fails to write, the others wait for its part.
    """
    if jax.process_count() == 1 or not paths.is_local(self.directory):
      return
    free = shutil.disk_usage(self.directory).free
    if any(self._gather(free < self._needed + _METADATA_BYTES)):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def _delete_newer(self, step: int) -> None:
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
        'Deleting the checkpoint of step %d: the run resumed from step %d and '
        'has now reached step %d.',
        stale,
        self._current,
        step,
      )
      self._orbax.delete(stale, missing_ok=True)

  def _finish(
    self, step: int, response: Any, start: float, blocking: float
  ) -> None:
    try:
      response.result()
    except Exception as error:  # The run must learn of any failure.
      self._record(step, start, blocking, error)
      self._remove_unfinished(step)
      return
    self._current = step
    self._record(step, start, blocking, None)
    try:
      self._after_commit(step)
    except Exception as error:  # Nobody joins this thread for its errors.
      logging.warning(
        'Step %d is saved, but cleaning up after it failed: %s',
        step,
        layout.one_line(error),
      )

  def _after_commit(self, step: int) -> None:
    checksums.write(self._folder(step))
    kept = [self._folder(x) for x in self.steps()]
    if jax.process_index() == 0:
      for folder in kept[: -self._keep]:
        if layout.has_replay(folder):
          retention.drop_replay(folder)
    self._delete_unnamed(kept)

  def _remove_unfinished(self, step: int) -> None:
    """Frees the space that a failed save occupies."""
    if paths.is_local(self.directory) and jax.process_index() == 0:
      for folder in self.directory.glob(f'{step}.orbax-checkpoint-tmp*'):
        shutil.rmtree(folder, ignore_errors=True)
    # Replay files are left for the next commit if this fails.
    with contextlib.suppress(Exception):
      self._delete_unnamed([self._folder(x) for x in self.steps()])

  def _delete_unnamed(self, kept: Sequence[epath.Path]) -> None:
    """Lets `on_commit` delete replay files that no manifest names."""
    if self._on_commit is not None:
      manifests = {x.name: layout.read_manifests(x) for x in kept}
      for folder in layout.quarantined(self.directory):
        with contextlib.suppress(ValueError, OSError):
          manifests[folder.name] = layout.read_manifests(folder)
      self._on_commit(manifests)

  def _record(
    self, step: int, start: float, blocking: float, error: Exception | None
  ) -> None:
    result = SaveResult(
      step=step,
      error=_reason(error) if error else '',
      blocking_s=blocking,
      total_s=time.perf_counter() - start,
      bytes=0 if error else layout.size(self._folder(step)),
    )
    if error:
      self._failed = True
      self._tell_failure(result)
    elif self._told:
      self._told = ''
      logging.warning('Saving works again; step %d is saved.', step)
    self._results.put(result)

  def _report_unraisable(self, unraisable: Any) -> None:
    """Hides late callbacks of a failed save, whose event loop has ended."""
    if str(unraisable.exc_value) != 'Event loop is closed':
      self._unraisablehook(unraisable)

  def _tell_failure(self, result: SaveResult) -> None:
    """Tells a reason once, until a save works again."""
    kind = re.sub(r'\d+', '', result.error)
    if kind == self._told:
      return
    self._told = kind
    free = paths.free_space(result.error, self.directory)
    size = paths.size(self._needed)
    needed = f'; needs about {size}, {free}' if free else ''
    logging.warning(
      'Saving step %d failed: %s%s. The run continues; the newest checkpoint '
      'is of step %s.',
      result.step,
      result.error,
      needed,
      max(self.steps(), default=None),
    )


class _TextFile:
  """A text file of a step, which Orbax writes in the background.

  Orbax calls `save` on the main thread, awaits its result on another one, and
  commits the step after that.

  Args:
    name: Name of the file.
    make: Returns the content; None if another process writes the file.
  """

  def __init__(self, name: str, make: Callable[[], str] | None):
    self._name = name
    self._make = make

  async def save(self, directory: ocp.path.PathAwaitingCreation):
    async def write():
      if self._make is not None:
        text = self._make()
        folder = await directory.await_creation()
        (folder / self._name).write_text(text)

    return write()

  async def load(self, directory: ocp.path.Path):
    raise NotImplementedError('Read the file directly; see layout.py.')


def _not_from_orbax(record: Any) -> bool:
  """Hides Orbax's pages on a failure, which is logged in one line instead."""
  return logging.level_debug() or '/orbax/' not in record.pathname


def _reason(error: Exception) -> str:
  text = layout.one_line(error)
  if 'DEADLINE_EXCEEDED' in text or 'barrier' in text:
    return f'another process failed to save or took too long ({text})'
  return paths.full_disk(text) or text
