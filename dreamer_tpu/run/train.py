"""Trains an agent by acting and learning in turns, in one thread.

The same seed gives the same run. `parallel` shares all of this but the thread.
"""

from collections.abc import Callable

from etils import epath
from ml_collections import ConfigDict

from dreamer_tpu.learner.learner import Result
from dreamer_tpu.run import setup
from dreamer_tpu.run.setup import Run


def main(
  config: ConfigDict, logdir: epath.Path, *, with_eval: bool = False
) -> int:
  """Trains until `run.steps`; resumes the run in the logdir, if there is one.

  Args:
    config: Merged and validated configuration.
    logdir: Directory of the run.
    with_eval: Whether to evaluate with each report.

  Returns:
    Exit code: 0 when done, 75 if the run was asked to stop and has saved.

  Raises:
    UserError: The configuration, the environment or the logdir do not fit.
  """
  with setup.make(config, logdir, with_eval=with_eval) as run:
    loop(run, lambda: act(run))
    finish(run)
  return run.progress.exit_code


def act(run: Run) -> None:
  """Acts in all environments of this host, unless updates are pending.

  Adds the steps to the replay.
  """
  if run.progress.should_wait():
    return
  with run.progress.acting, run.timer.section('acting'):
    episodes = run.actor.step(run.replay.add)
    run.logger.episodes.extend(episodes)
    run.progress.add_steps()


def loop(
  run: Run, act: Callable[[], None], *, update_limit: int | None = None
) -> None:
  """Trains until the run is done or asked to stop.

  Args:
    run: Parts of the run.
    act: Acts, or waits for another thread that does.
    update_limit: Maximum number of updates between two calls of `act`.
  """
  progress, learner, logger = run.progress, run.learner, run.logger
  while progress.running:
    act()

    # Agree with the other hosts on steps, stop requests and the time.
    with run.timer.section('agreeing'):
      progress.agree(stop=run.preemption.requested)
    logger.add_episodes()
    if not progress.ready:
      continue

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
      with logger.section('reporting', compiles='the report'):
        write_back(run, learner.flush())
        metrics = run.reporter(progress.update)
      if run.evaluator:
        with run.timer.section('publishing'):
          run.publisher(progress.update, now=True)
        run.terminal.log_status('Evaluating the policy.')
        with run.timer.section('evaluating'):
          metrics |= run.evaluator(run.policy.params, progress.update)
        logger.write_scores(run.evaluator.episodes)
      logger.write_report(metrics)

    if progress.due('save') and all(run.sync.gather(run.saver.ready())):
      with run.timer.section('saving'):
        save(run)


def write_back(run: Run, result: Result | None) -> None:
  """Updates the replay with the latents and losses of a finished update."""
  if result is not None:
    run.replay.update(result.stepid, result.latents)
    run.replay.prioritize(result.stepid, result.priority)
    run.logger.add_update(result)


def save(run: Run) -> None:
  """Starts a save, between two steps of the environments."""
  with run.progress.acting:
    write_back(run, run.learner.flush())
    run.progress.drain()
    run.logger.add_episodes()
    run.logger.gather_episodes()
    run.saver.save(
      run.progress.step, run.state(), run.stream_states(), run.score
    )


def finish(run: Run) -> None:
  """Saves, waits for the save, and logs the end of the run."""
  run.terminal.log_status(f'Saving step {run.progress.step:,}.')
  save(run)
  saves = run.saver.finish()
  if run.progress.unlogged:
    run.logger.write(saves)
  run.logger.summary()
