"""Import of recorded episodes as the replay of a new run.

Memory does not grow with the data: episodes are read in groups, their latents
computed, and their steps written to the replay's own files. Nothing refers to
these until the last step, which commits a checkpoint that names them.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from dreamer_tpu import envs
from dreamer_tpu.agent import Agent
from dreamer_tpu.checkpoint import layout
from dreamer_tpu.checkpoint.manager import Checkpointer
from dreamer_tpu.config import sequence_length
from dreamer_tpu.envs import Conversion
from dreamer_tpu.envs.recorded import Recorded
from dreamer_tpu.envs.suites import data as data_suite
from dreamer_tpu.errors import UserError, describe, prefixed
from dreamer_tpu.hosts.sync import HostSync
from dreamer_tpu.learner.latents import LatentPass
from dreamer_tpu.learner.learner import Learner
from dreamer_tpu.learner.steps import step_spec
from dreamer_tpu.metrics.terminal import Terminal
from dreamer_tpu.replay import ImportWriter, prune
from dreamer_tpu.run import parts, saving
from dreamer_tpu.run.progress import Progress
from dreamer_tpu.tools.data import describing
from dreamer_tpu.tools.data.episodes import (
  Arrays,
  BrokenEpisode,
  Episode,
  Names,
  Source,
)
from dreamer_tpu.tools.data.npz import shift
from dreamer_tpu.tools.data.sources import open_source

# Episodes are handled in groups of at most this size, or one at a time.
_GROUP_STEPS = 2**14
_GROUP_BYTES = 2**28
# Broken episodes that are named one by one.
_NAMED = 20


@dataclasses.dataclass
class Counts:
  """Counts of an import.

  Attributes:
    episodes: Imported episodes.
    steps: Their steps, one per observation.
    broken: Episodes that were skipped.
    unfinished: Imported episodes whose end was not recorded.
    seconds: Time that it took.
  """

  episodes: int = 0
  steps: int = 0
  broken: int = 0
  unfinished: int = 0
  seconds: float = 0.0

  def __str__(self) -> str:
    return (
      f'{self.episodes:,} episodes with {self.steps:,} steps in '
      f'{self.seconds:.1f} s, {self.steps / self.seconds:,.0f} steps/s'
    )


def run(config: ConfigDict, logdir: epath.Path, names: Sequence[str]) -> None:
  """Imports sources into a new logdir, from which main.py resumes.

  Args:
    config: Merged and validated configuration.
    logdir: Directory of the run.
    names: Sources, as in `open_source`.

  Raises:
    UserError: The logdir holds a run, or the data cannot be read or do not fit
      the environment; nothing is imported.
  """
  if layout.committed_steps(logdir / 'checkpoints'):
    raise UserError(
      f"'{logdir}' holds a run already; import into a new directory."
    )
  terminal = Terminal()
  terminal.format_warnings()
  conversion, sources = _open(config, names)
  for line in conversion.table():
    terminal.log_status(line)
  folder = logdir / 'checkpoints'
  checkpointer = Checkpointer(folder, timeout=config.checkpoint.timeout)
  with checkpointer, _removed_on_failure(logdir, config.task):
    agent = parts.make_agent(config, conversion)
    learner = parts.make_learner(config, agent)
    saving.init_learner(config, learner, terminal.log_status)
    writer = ImportWriter(
      step_spec(agent),
      logdir / 'replay',
      length=sequence_length(config),
      chunksize=config.replay.chunksize,
      seed=parts.seed(config, parts.REPLAY, 0),
    )
    counts = Counts()
    for _ in _write(config, learner, writer, _convert(sources, counts), counts):
      terminal.pulse(str(counts))
    if not counts.episodes:
      raise UserError(f'None of the {counts.broken} episodes can be imported.')
    data_suite.save(config.task, conversion)
    _commit(config, checkpointer, learner, conversion, writer.finish())
  terminal.log_status(f'Imported {counts}.')
  _warn(config, counts)


def _write(
  config: ConfigDict,
  learner: Learner,
  writer: ImportWriter,
  episodes: Iterable[Arrays],
  counts: Counts,
) -> Iterator[None]:
  """Writes episodes with their latents, and counts them, group by group."""
  begin = time.perf_counter()
  device = parts.devices(config)[1]
  add_latents = LatentPass(
    learner.agent,
    learner.publish(device),
    seed=parts.seed(config, parts.ACTING, 0),
    device=device,
  )
  for group in _groups(episodes):
    add_latents(group)
    for episode in group:
      writer.add(_typed(episode, learner.agent))
    counts.episodes += len(group)
    counts.steps = writer.steps
    counts.seconds = time.perf_counter() - begin
    yield


def _open(
  config: ConfigDict, names: Sequence[str]
) -> tuple[Conversion, list[tuple[Source, Recorded]]]:
  """Returns the conversion of the environment, and the sources to read."""
  rules = parts.conversion_rules(config)
  if data_suite.is_undescribed(config.task):
    found = [open_source(name, Names()) for name in names]
    conversion = describing.conversion(found, rules)
  else:
    env = envs.make_vector(config.task, 1, 0, config.env, rules=rules)
    env.close()
    conversion = env.conversion
    known = Names(
      conversion.own_observations,
      {*conversion.own_actions, *conversion.act_space},
    )
    found = [open_source(name, known) for name in names]
  sources: list[tuple[Source, Recorded]] = []
  for source in found:
    if source.name in [other.name for other, _ in sources]:
      raise UserError(f"'{source.name}' is given twice.")
    obs, act = describing.recordings(source)
    try:
      recorded = Recorded(
        conversion, obs, act, agents=source.agents, sampled=source.sampled
      )
    except UserError as error:
      raise prefixed(f"'{source.name}': ", error) from error
    if unused := recorded.unused(obs):
      logging.warning("'%s': not used: %s.", source.name, ', '.join(unused))
    sources.append((source, recorded))
  return conversion, sources


@contextlib.contextmanager
def _removed_on_failure(logdir: epath.Path, task: str) -> Iterator[None]:
  """Removes the files of an import that fails before it is committed."""
  undescribed = data_suite.is_undescribed(task)
  try:
    yield
  except BaseException as error:
    if not layout.committed_steps(logdir / 'checkpoints'):
      prune(logdir / 'replay', [])
      for folder in ('replay/0000', 'replay'):
        with contextlib.suppress(OSError):
          (logdir / folder).rmdir()
      if undescribed:
        data_suite.path(task).unlink(missing_ok=True)
    if isinstance(error, OSError):  # Such as a full disk.
      raise UserError(f"The import into '{logdir}' failed: {error}.") from error
    raise


def _convert(
  sources: Sequence[tuple[Source, Recorded]], counts: Counts
) -> Iterator[Arrays]:
  """Yields the steps of each episode; names and counts broken ones."""
  for source, recorded in sources:
    for name, read in source.read():
      try:
        episode = read()
        steps = steps_of(episode, recorded)
      except UserError as error:  # It concerns the whole source.
        raise prefixed(f"'{source.name}', {name}: ", error) from error
      except Exception as error:  # A broken file can raise anything.
        counts.broken += 1
        if counts.broken <= _NAMED:
          logging.warning(
            "'%s', %s is skipped: %s", source.name, name, _reason(error)
          )
        continue
      counts.unfinished += not episode.whole
      yield steps


def steps_of(episode: Episode, recorded: Recorded) -> Arrays:
  """Returns an episode as the replay stores it, without latents.

  Returns:
    Arrays [T + 1, ...] by key. Nothing follows the last observation: its action
    is 0.

  Raises:
    ValueError: A value is missing or does not fit; names it.
  """
  count = len(episode.rewards)
  if not count:
    raise BrokenEpisode('it has no action')
  actions = recorded.action(episode.actions)
  arrays = recorded.observation(episode.observations) | {
    k: np.concatenate([x, np.zeros_like(x[:1])]) for k, x in actions.items()
  }
  for key, array in arrays.items():
    if len(array) != count + 1:
      raise BrokenEpisode(
        f'{key!r} has {len(array)} rows, where {count} rewards need {count + 1}'
      )
  rewards = np.asarray(episode.rewards, np.float32)
  if rewards.size != count or not np.isfinite(rewards).all():
    raise BrokenEpisode('its rewards are not finite numbers, one per step')
  rows = np.arange(count + 1)
  return arrays | {
    'reward': shift(rewards.reshape(count)),
    'is_first': rows == 0,
    'is_last': rows == count,
    'is_terminal': (rows == count) & episode.terminal,
  }


def _reason(error: Exception) -> str:
  if isinstance(error, ValueError) and str(error):
    return ' '.join(str(error).split())
  return describe(error)


def _groups(episodes: Iterable[Arrays]) -> Iterator[list[Arrays]]:
  """Yields groups of consecutive episodes, which share passes of the agent."""
  group: list[Arrays] = []
  steps = size = 0
  for episode in episodes:
    group.append(episode)
    steps += len(episode['is_first'])
    size += sum(x.nbytes for x in episode.values())
    if steps >= _GROUP_STEPS or size >= _GROUP_BYTES:
      yield group
      group, steps, size = [], 0, 0
  if group:
    yield group


def _typed(episode: Arrays, agent: Agent) -> Arrays:
  """Returns the arrays in the dtypes of the replay."""
  spaces = {**agent.obs_space, **agent.act_space}
  return {
    k: x.astype(spaces[k].dtype, copy=False) if k in spaces else x
    for k, x in episode.items()
  }


def _commit(
  config: ConfigDict,
  checkpointer: Checkpointer,
  learner: Learner,
  conversion: Conversion,
  manifest: dict[str, Any],
) -> None:
  """Saves the first checkpoint of a run, with the imported replay."""
  empty = parts.make_replay(config, learner.agent, config.run.envs)
  progress = Progress(config, HostSync(), empty, config.run.envs, {})
  state = {
    **progress.state(),
    'policy_steps': 0,
    **saving.describe_agent(config, learner.agent, conversion),
  }
  checkpointer.save(0, learner.state, state, lambda: manifest)
  (result,) = checkpointer.wait()
  if result.error:
    raise UserError(f'Saving the import failed ({result.error}).')


def _warn(config: ConfigDict, counts: Counts) -> None:
  """Tells what was left out, or will be."""
  if counts.broken:
    logging.warning('%d episodes were broken and skipped.', counts.broken)
  if counts.unfinished:
    logging.warning(
      '%d episodes have no end; their last steps count as not terminal.',
      counts.unfinished,
    )
  size = config.replay.size
  if counts.steps > size:
    logging.warning(
      'replay.size=%d is less than the %d imported steps: a run drops the '
      'first ones. Use --config.replay.size=%d.',
      size,
      counts.steps,
      counts.steps,
    )
