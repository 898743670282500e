"""Export of the replay of a run as episodes."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath
from gymnasium.spaces import Dict

from dreamer_tpu.envs import Conversion, kinds
from dreamer_tpu.envs.observations import LOG
from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics.terminal import Terminal
from dreamer_tpu.tools.data import npz
from dreamer_tpu.tools.data.episodes import BrokenEpisode, Episode
from dreamer_tpu.tools.data.logdirs import Logdir
from dreamer_tpu.tools.data.minari_sets import PREFIX, load_library


@dataclasses.dataclass
class Counts:
  """Counts of an export.

  Attributes:
    episodes: Whole episodes.
    steps: Their steps, one per observation.
    cut: Episodes without a start or an end, which are left out.
  """

  episodes: int = 0
  steps: int = 0
  cut: int = 0


def run(logdir: str, out: str, *, evaluate: bool = False) -> None:
  """Exports the whole episodes in the replay of a run.

  Args:
    logdir: Directory of the run.
    out: New folder for *.npz episodes, or 'minari:ID'.
    evaluate: Whether to export its evaluation replay.

  Raises:
    UserError: There is no replay, or `out` exists. Nothing is written then.
  """
  terminal = Terminal()
  terminal.format_warnings()
  target = _minari_folder(out) if out.startswith(PREFIX) else epath.Path(out)
  if target.exists():
    raise UserError(f"'{target}' exists already; choose another --out.")
  source = Logdir(epath.Path(logdir).expanduser(), evaluate=evaluate)
  counts = Counts()
  episodes = _whole(source, counts, terminal)
  with _unfinished(target) as folder:
    if out.startswith(PREFIX):
      _write_minari(folder / 'data', out.removeprefix(PREFIX), source, episodes)
    else:
      for i, episode in enumerate(episodes):
        npz.save(folder / f'episode-{i:06d}.npz', _clipped(episode, source))
    if not counts.episodes:
      raise UserError(
        f"'{logdir}' holds no whole episode; {counts.cut} have no start or no "
        'end.'
      )
  terminal.log_status(
    f'Exported {counts.episodes:,} episodes with {counts.steps:,} steps to '
    f'{target}; {counts.cut} without a start or an end are left out.'
  )


@contextlib.contextmanager
def _unfinished(target: epath.Path) -> Iterator[epath.Path]:
  """Yields a folder that gets the name of the target if the body succeeds."""
  folder = target.with_name(f'tmp-{target.name}')
  shutil.rmtree(folder, ignore_errors=True)
  try:
    folder.mkdir(parents=True)
    yield folder
  except BaseException as error:
    shutil.rmtree(folder, ignore_errors=True)
    if isinstance(error, OSError):  # Such as a full disk.
      raise UserError(f"The export to '{target}' failed: {error}.") from error
    raise
  folder.rename(target)


def _whole(
  source: Logdir, counts: Counts, terminal: Terminal
) -> Iterator[Episode]:
  """Yields the whole episodes; counts and shows all."""
  for _, read in source.read():
    try:
      episode = read()
    except BrokenEpisode:
      counts.cut += 1
      continue
    if not episode.whole:
      counts.cut += 1
      continue
    counts.episodes += 1
    counts.steps += len(episode.rewards) + 1
    yield episode
    terminal.pulse(f'{counts.episodes:,} episodes')


def _clipped(episode: Episode, source: Logdir) -> Episode:
  """Returns an episode with the actions that the environment got, in -1..1."""
  spaces = source.conversion.act_space
  actions = {k: kinds.clip(spaces[k], x) for k, x in episode.actions.items()}
  return dataclasses.replace(episode, actions=actions)


def _minari_folder(out: str) -> epath.Path:
  minari = load_library()
  return epath.Path(minari.storage.get_dataset_path(out.removeprefix(PREFIX)))


def _write_minari(
  folder: epath.Path, name: str, source: Logdir, episodes: Iterable[Episode]
) -> None:
  """Writes a dataset: the agent's observations, the environment's actions."""
  minari = load_library()
  try:
    minari.dataset.minari_dataset.parse_dataset_id(name)
  except (ValueError, TypeError) as error:
    raise UserError(
      f'--out={PREFIX}{name}: write a name and a version, such as '
      f'{PREFIX}cartpole/random-v0.'
    ) from error
  conversion, task = source.conversion, source.config['task']
  spaces = {
    k: x for k, x in conversion.obs_space.items() if not k.startswith(LOG)
  }
  folder.mkdir(parents=True)
  storage = minari.dataset.minari_storage.MinariStorage.new(
    folder,
    observation_space=_nest(spaces, Dict),
    action_space=conversion.action_space,
    data_format='hdf5',
    jpeg_encoding=False,
  )
  storage.update_episodes(_buffer(minari, x, conversion) for x in episodes)
  storage.update_metadata(
    {
      'dataset_id': name,
      'minari_version': minari.__version__,
      'algorithm_name': 'DreamerV3',
      'description': f'{task}, with the observations of the agent.',
    }
  )


def _buffer(minari: Any, episode: Episode, conversion: Conversion) -> Any:
  count = len(episode.rewards)
  last = np.arange(count) == count - 1
  actions = conversion.action(dict(episode.actions), 1)
  return minari.data_collector.EpisodeBuffer(
    observations=_nest(episode.observations, dict),
    actions=actions,
    rewards=episode.rewards,
    terminations=last & episode.terminal,
    truncations=last & (not episode.terminal),
    infos={},
  )


def _nest(flat: Mapping[str, Any], make: Any) -> Any:
  """Returns values by flat names as a nested dict, or the only one itself."""
  if len(flat) == 1 and '/' not in next(iter(flat)):
    return next(iter(flat.values()))
  tree: dict[str, Any] = {}
  for name, value in flat.items():
    *folders, key = name.split('/')
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[key] = value

  def finish(node: Any) -> Any:
    if not isinstance(node, dict):
      return node
    return make({key: finish(child) for key, child in node.items()})

  return finish(tree)
