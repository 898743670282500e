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
from orbax.checkpoint import v1 as ocp

from dreamer_tpu.checkpoint import layout, restore
from dreamer_tpu.checkpoint.lock import Lock
from dreamer_tpu.errors import UserError

Manifests = dict[int, dict[str, Any]]


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
    timeout: float = 600.0,
    on_commit: Callable[[Manifests], None] | None = None,
  ):
    """Opens or creates the folder and removes what broken saves left.

    Args:
      directory: `LOGDIR/checkpoints`, local or gs://.
      keep: The newest steps to keep.
      timeout: Seconds that processes wait for each other in a save.
      on_commit: Called in the background after each commit with the replay
        manifests of all steps that are kept: {step: {shard: manifest}}. The
        next save waits for it, so it may delete chunks that none of them
        names.

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
    self._on_commit = on_commit
    self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    self._thread: threading.Thread | None = None
    self._current: int | None = None
    self._failed = False
    context = ocp.Context()
    context.asynchronous.timeout_secs = int(timeout)
    self._orbax = ocp.training.Checkpointer(
      self.directory,
      context=context,
      preservation_policy=ocp.training.preservation_policies.LatestN(keep),
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

  def saving(self) -> bool:
    """Whether a save is still being written."""
    return self._thread is not None and self._thread.is_alive()

  def restore(
    self, step: int, abstract: Any, config: Mapping[str, Any] | None = None
  ) -> restore.Restored:
    """Reads a committed step; see `restore.restore`.

    The run goes on from there: newer steps are given up at the next save.
    """
    if step not in self.steps():
      raise UserError(
        f"No checkpoint of step {step} in '{self.directory}', which holds "
        f'{self.steps()}.'
      )
    restored = restore.restore(self.directory / str(step), abstract, config)
    self._current = step
    return restored

  def save(
    self,
    step: int,
    agent: Any,
    run: Mapping[str, Any],
    write_replay: Callable[[], dict[str, Any]] | None = None,
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
      layout.RUN: _TextFile(layout.RUN_FILE, lambda: text, shared=True),
      layout.REPLAY: _replay_file(write_replay),
    }
    try:
      response = self._orbax.save_checkpointables_async(step, items, force=True)
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
      self._committed()
    except Exception as error:  # nor may this end in a thread that nobody reads
      logging.warning(
        'Step %d is saved, but what followed failed: %s',
        step,
        layout.one_line(error),
      )

  def _committed(self) -> None:
    if self._on_commit is not None:
      folders = {x: self.directory / str(x) for x in self.steps()}
      self._on_commit({k: layout.read_manifests(v) for k, v in folders.items()})

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


def _reason(error: Exception) -> str:
  text = layout.one_line(error)
  if 'DEADLINE_EXCEEDED' in text:
    return f'another process failed to save or took too long ({text})'
  return text


class _TextFile:
  """One text file of a step, made and written in the background.

  Orbax calls `save` on the main thread and awaits what it returns on another
  one; the step commits after that.
  """

  def __init__(self, name: str, make: Callable[[], str], *, shared: bool):
    self._name = name
    self._make = make
    self._writes = not shared or jax.process_index() == 0

  async def save(self, directory: ocp.path.PathAwaitingCreation):
    async def write():
      if self._writes:
        text = self._make()
        folder = await directory.await_creation()
        (folder / self._name).write_text(text)

    return write()

  async def load(self, directory: ocp.path.Path):
    raise NotImplementedError('The files are read directly; see layout.py.')


def _replay_file(write: Callable[[], dict[str, Any]] | None) -> _TextFile:
  name = f'{jax.process_index()}.json'
  return _TextFile(
    name, lambda: json.dumps(write() if write else {}), shared=False
  )
