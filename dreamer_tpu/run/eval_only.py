"""Evaluates a trained agent without training it."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from dreamer_tpu import policy
from dreamer_tpu.actor.evaluation import Evaluation, evaluate
from dreamer_tpu.checkpoint.partial import check_exists
from dreamer_tpu.cli import logdirs, platform
from dreamer_tpu.errors import STOPPED, UserError
from dreamer_tpu.hosts.preemption import Preemption
from dreamer_tpu.metrics.terminal import Terminal, number
from dreamer_tpu.metrics.writers import Writers, check_installed
from dreamer_tpu.run import parts
from dreamer_tpu.run.report import describe_progress, describe_unfinished


def main(
  config: ConfigDict, logdir: epath.Path, preemption: Preemption | None = None
) -> int:
  """Plays `run.eval_eps` episodes with the agent of `run.from_checkpoint`.

  The sizes of the agent come from its checkpoint, not from the configuration.
  Results are written at its step.

  Args:
    config: Merged and validated configuration.
    logdir: Directory of the results.
    preemption: Stop requests, if the caller already handles signals.

  Returns:
    Exit code: 0 when done, 75 if asked to stop, in which case nothing is
    written.

  Raises:
    UserError: There is no such agent, or it does not fit the environment.
  """
  if (logdir / 'checkpoints').exists():
    raise UserError(
      f'--logdir={logdir} holds a training run; choose another directory for '
      'the results.'
    )
  check_installed(config.metrics.outputs)
  source = config.run.from_checkpoint
  check_exists(source)
  with contextlib.ExitStack() as stack:
    terminal = Terminal(enabled='log' in config.metrics.outputs)
    terminal.format_warnings()
    terminal.log_status(f'This is {platform.versions()}.')
    stop = preemption or stack.enter_context(Preemption())
    stop.attend(
      lambda _: terminal.log_status('Stopping.'), lambda: 'nothing is written'
    )
    asked = lambda: stop.requested
    parts.check_environment(config, asked, terminal.log_status)
    env = stack.enter_context(
      contextlib.closing(
        parts.make_envs(
          config, 0, asked, evaluate=True, rules=policy.load_rules(source)
        )
      )
    )
    for line in env.conversion.table():
      terminal.log_status(line)
    spaces = (
      parts.agent_spaces(env.obs_space),
      parts.agent_spaces(env.act_space),
    )
    loaded = policy.load_agent(source, parts.compute_dtype(config), spaces)
    terminal.log_status(f'Loaded the policy of {source}, step {loaded.step:,}.')
    logdirs.save_config(config, logdir)
    writers = stack.enter_context(
      Writers(
        logdir, config.metrics.outputs, config.to_dict(), terminal=terminal
      )
    )
    act = parts.make_policy(config, loaded.agent, env.num_envs, evaluate=True)
    act.params = jax.device_put(loaded.params, act.device)
    result = evaluate(
      env,
      act,
      config.run.eval_eps,
      finished=_progress(terminal, config.run.eval_eps),
      stepped=lambda steps, ended: terminal.pulse(
        describe_progress(steps, ended, config.run.eval_eps)
      ),
      stop=asked,
      length=config.run.eval_length,
      record=env.num_envs,
    )
    if not result.complete:
      terminal.log_status('Stopped early; nothing is written.')
      return STOPPED
    _write(result, loaded, env.repeat, writers)
    if result.unfinished:
      count, length = len(result.unfinished), config.run.eval_length
      terminal.log_status(describe_unfinished(count, length))
    terminal.log_status(f'Done: {describe(result)}.')
    terminal.log_status(f'The results are in {logdir}.')
  return 0


def describe(result: Evaluation) -> str:
  """Returns a one-line summary of the scores."""
  metrics = result.metrics()
  if not result.episodes:
    score = number(metrics['unfinished/score'])
    return f'no episode has ended, score {score} until then'
  scores = [episode['score'] for episode in result.episodes]
  text = f'score {number(metrics["episode/score"])}'
  if 'episode/score_sem' in metrics:
    text += f' ± {number(metrics["episode/score_sem"])} (standard error)'
  return (
    f'{text}, median {number(metrics["episode/score_median"])}, '
    f'{number(min(scores))} to {number(max(scores))}, in {len(scores)} '
    f'episodes of {number(metrics["episode/length"])} steps'
  )


def _progress(
  terminal: Terminal, total: int
) -> Callable[[dict[str, Any]], None]:
  """Returns a function that shows an episode and the mean so far."""
  scores: list[float] = []

  def finished(episode: dict[str, Any]) -> None:
    scores.append(episode['score'])
    terminal.progress_line(
      f'episode {len(scores)}/{total} | score {number(scores[-1])} | '
      f'length {number(episode["length"])} | '
      f'mean {number(float(np.mean(scores)))}'
    )

  return finished


def _write(
  result: Evaluation, loaded: policy.LoadedAgent, repeat: int, writers: Writers
) -> None:
  """Writes scores, their statistics and videos at the step of the agent."""
  for episode in result.episodes:
    score, length, stats = (episode[k] for k in ('score', 'length', 'stats'))
    writers.write_score(loaded.step, score, length, 'eval', stats)
  metrics: dict[str, Any] = {
    **{f'eval/{k}': v for k, v in result.metrics().items()},
    **{f'eval/episode/{k}': v for k, v in result.videos.items()},
  }
  frames = loaded.step * repeat
  writers.write(loaded.step, metrics, frames=frames, update=loaded.update)
