"""Trains an agent by acting and learning in turns, in one thread.

The same seed gives the same run. `parallel` shares all of this but the thread.
"""

import contextlib
from collections.abc import Callable, Iterator

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from dreamer_tpu.errors import Interrupted
from dreamer_tpu.hosts.preemption import Preemption
from dreamer_tpu.learner.learner import Result
from dreamer_tpu.run import setup
from dreamer_tpu.run.setup import Run


def main(
  config: ConfigDict,
  logdir: epath.Path,
  preemption: Preemption | None = None,
  *,
  with_eval: bool = False,
) -> int:
  """Trains until `run.steps`; resumes the run in the logdir, if there is one.

  Args:
    config: Merged and validated configuration.
    logdir: Directory of the run.
    preemption: Stop requests, if the caller already handles signals.
    with_eval: Whether to evaluate with each report.

  Returns:
    Exit code: 0 when done, 75 if the run was asked to stop and has saved.

  Raises:
    UserError: The configuration, the environment or the logdir do not fit.
  """
  with (
    setup.make(config, logdir, preemption, with_eval=with_eval) as run,
    saved_at_end(run),
  ):
    # Steps that many updates follow must not delay a stop, a save or a log.
    loop(run, lambda: take_turn(run), update_limit=run.progress.most_pending)
  return run.progress.exit_code


def take_turn(run: Run) -> None:
  """Acts after all latents are written back, as before a save.

  So the times of saves do not change the run.
  """
  if not run.progress.offline:
    write_back(run, run.learner.flush())
  act(run)


def act(run: Run) -> None:
  """Acts in all environments of this host, unless updates are pending.

  Adds the steps to the replay. If the environments fail, all hosts stop.
  """
  if run.progress.should_wait():
    return
  acting = run.logger.section('acting', compiles=run.actor.compiles)
  with run.progress.acting, acting:
    try:
      episodes = run.actor.step(run.store)
    except Interrupted:
      run.progress.interrupted = True
      return
    except Exception as error:
      run.progress.fail(error)
      return
    step = run.progress.add_steps()
    run.logger.episodes.extend(
      {**x, 'step': step - x.get('ago', 0)} for x in episodes
    )


def loop(run: Run, act: Callable[[], None], *, update_limit: int) -> None:
  """Trains until the run is done or asked to stop.

  Args:
    run: Parts of the run.
    act: Acts, or waits for another thread that does.
    update_limit: Maximum number of updates between two calls of `act`.
  """
  progress, learner, logger = run.progress, run.learner, run.logger
  if not run.resumed:
    with run.timer.section('saving'):
      save(run)

  filling = not progress.ready
  while progress.running:
    act()

    # Agree with the other hosts on steps, stop requests and the time.
    with run.timer.section('agreeing'):
      progress.agree(
        stop=run.preemption.requested, save=run.preemption.take_save_request()
      )
    logger.add_episodes()
    if progress.stopped:
      break  # Before anything that compiles.
    if not progress.ready:
      save_if_due(run)
      continue
    if filling:
      filling = False
      save_before_compiling(run)

    # The results of an update arrive with the next one, so that the device
    # computes while the host prepares the next batch.
    for _ in range(progress.updates_due(update_limit)):
      learning = logger.section('learning', compiles='the train step')
      with learning, run.profiler(progress.update):
        batch, stepid = next(run.stream)
        write_back(run, learner.update(learner.put(batch), stepid))
        progress.add_update()
        if progress.caught_up:
          write_back(run, learner.flush())

    with run.timer.section('publishing'):
      run.publisher(progress.update)

    if progress.due('log'):
      with run.timer.section('logging'):
        logger.write(run.saver.poll())

    if progress.due('report'):
      if not logger.compiled('the report'):
        save_before_compiling(run)
      with logger.section('reporting', compiles='the report'):
        write_back(run, learner.flush())
        metrics = run.reporter(progress.update)
      if run.evaluator:
        with run.timer.section('publishing'):
          run.publisher(progress.update, now=True)
        run.terminal.log_status('Evaluating the policy.')
        with run.timer.section('evaluating'):
          metrics |= run.evaluator(
            run.policy.params, progress.update, progress.fail
          )
        logger.write_scores(run.evaluator.episodes)
      logger.write_report(metrics)

    save_if_due(run)


def write_back(run: Run, result: Result | None) -> None:
  """Updates the replay with the latents and losses of a finished update."""
  if result is not None:
    run.replay.update(result.stepid, result.latents)
    run.replay.prioritize(result.stepid, result.priority)
    run.logger.add_update(result)


def save_if_due(run: Run) -> None:
  """Starts a save, unless the previous one has not ended on all hosts."""
  if not run.progress.due('save'):
    return
  ready = run.saver.ready(warn=not run.progress.asked_to_save)
  if all(run.sync.gather(ready)):
    with run.timer.section('saving'):
      save(run)


def save_before_compiling(run: Run) -> None:
  """Saves first, because a stop cannot wait for the compiler."""
  with run.timer.section('saving'):
    save(run)


def save(run: Run) -> None:
  """Starts a save, between two steps of the environments."""
  with run.preemption.saving(), run.progress.acting:
    write_back(run, run.learner.flush())
    run.progress.drain()
    run.logger.add_episodes()
    run.logger.gather_episodes()
    # A resume continues after the checkpoint and writes no earlier lines.
    run.logger.writers.retry()
    run.saver.save(
      run.progress.step, run.state(), run.stream_states(), run.score
    )
    run.progress.asked_to_save = False
    run.progress.saved = run.progress.step


@contextlib.contextmanager
def saved_at_end(run: Run) -> Iterator[None]:
  """Saves after the loop, also if it failed.

  Errors of environments and outputs reach this on all hosts together. Any
  other on one of several hosts does not, and the heartbeat ends the run.
  """
  try:
    yield
  except Exception as error:
    if jax.process_count() > 1:
      raise
    run.progress.fail(error)
  try:
    finish(run)
  except Exception as error:
    if run.progress.failure is None:
      raise
    text = ' '.join(str(error).split())
    logging.warning('Saving after an error failed as well: %s', text)
  if run.progress.failure:
    raise run.progress.failure


def finish(run: Run) -> None:
  """Saves, logs the end of the run, and waits until all hosts have done so."""
  run.terminal.log_status(f'Saving step {run.progress.step:,}.')
  with run.preemption.saving():
    save(run)
    saves = run.saver.finish()
  if run.progress.unlogged:
    run.logger.write(saves)
  run.logger.summary()
  run.logger.writers.close()
  # A host with an error ends all others at once: first let them get here.
  timeout = run.logger.config.distributed.timeout
  run.sync.barrier('the end of the run', timeout)
