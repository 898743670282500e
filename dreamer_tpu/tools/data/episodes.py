"""Recorded episodes, and streams of steps cut into episodes."""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import gymnasium
import numpy as np

Arrays = dict[str, np.ndarray]

# Keys of recorded steps that are neither observations nor actions.
FLAGS = ('is_first', 'is_last', 'is_terminal')
_OTHER = (
  *FLAGS,
  'reward',
  'discount',
  'terminated',
  'truncated',
  'reset',
  'consec',
  'stepid',
  'logprob',
)
_OTHER_FOLDERS = ('log', 'latent', 'dyn', 'enc', 'dec', 'info', 'metadata')


class Names(NamedTuple):
  """Names that are known among recorded arrays.

  Attributes:
    observations: Observations, also if they have the name of something else.
    actions: Actions; if empty, those whose names start with 'action'.
  """

  observations: Collection[str] = ()
  actions: Collection[str] = ()


class BrokenEpisode(ValueError):
  """An episode cannot be read; says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
  """An episode of T actions.

  Attributes:
    observations: [T + 1, ...] by name.
    actions: [T, ...] by name, each taken after the observation of its row.
    rewards: [T], each for the action of its row.
    terminal: Whether the last observation is terminal.
    whole: Whether the end of the episode was recorded.
  """

  observations: Mapping[str, np.ndarray]
  actions: Mapping[str, np.ndarray]
  rewards: np.ndarray
  terminal: bool
  whole: bool = True


# The name of an episode, for messages, and a function that reads it.
Entry = tuple[str, Callable[[], Episode]]


class Source(Protocol):
  """Recorded episodes."""

  @property
  def name(self) -> str:
    """Name for messages."""
    ...

  @property
  def agents(self) -> bool:
    """True if values that can be those of an agent are.

    Another run has stored them; others are the environment's.
    """
    ...

  @property
  def sampled(self) -> bool:
    """True if an agent has certainly sampled the actions.

    Of those beyond the bounds, the environment got the bounds.
    """
    ...

  @property
  def spaces(self) -> tuple[gymnasium.Space, gymnasium.Space] | None:
    """Observation and action space, if the files name them."""
    ...

  def read(self) -> Iterator[Entry]:
    """Yields the episodes; reading one raises any error if it is broken."""
    ...


def broken(reason: str) -> Callable[[], Episode]:
  """Returns a function that raises BrokenEpisode."""

  def read() -> Episode:
    raise BrokenEpisode(reason)

  return read


def split(
  arrays: Mapping[str, np.ndarray], names: Names
) -> tuple[Arrays, Arrays]:
  """Returns the observations and the actions among recorded arrays.

  Args:
    arrays: Arrays by name.
    names: Names that are known.
  """
  known = set(names.observations) - {'reward', *FLAGS}
  acts = set(names.actions) or {
    k for k in arrays if k.startswith('action') and k not in known
  }
  others = {
    k for k in arrays if k in _OTHER or k.split('/')[0] in _OTHER_FOLDERS
  }
  obs = arrays.keys() - acts - (others - known)
  return {k: arrays[k] for k in sorted(obs)}, {
    k: arrays[k] for k in sorted(acts & arrays.keys())
  }


def cut(
  parts: Iterable[tuple[str, Arrays | Exception]], names: Names
) -> Iterator[Entry]:
  """Cuts a stream of steps into episodes.

  Args:
    parts: Names and consecutive steps of a stream, [n, ...] by key, as the
      replay stores them: an action follows the observation of its row, and a
      reward comes with it. An error in their place interrupts the stream.
    names: Names that are known.
  """
  pieces: list[Arrays] = []
  start = ''
  for name, arrays in parts:
    if isinstance(arrays, Exception):
      if pieces:
        yield start, _joined(pieces, names)
        pieces = []
      yield name, broken(str(arrays))
      continue
    first = arrays['is_first']
    bounds = sorted({0, len(first), *np.flatnonzero(first).tolist()})
    for begin, end in itertools.pairwise(bounds):
      if first[begin] and pieces:
        yield start, _joined(pieces, names)
        pieces = []
      if first[begin]:
        start = f'{name}, row {begin}'
      elif not pieces:
        yield f'{name}, row {begin}', broken('the start of it is missing')
        continue
      pieces.append({k: x[begin:end] for k, x in arrays.items()})
  if pieces:
    yield start, _joined(pieces, names)


def _joined(pieces: list[Arrays], names: Names) -> Callable[[], Episode]:
  def read() -> Episode:
    arrays = {
      k: np.concatenate([piece[k] for piece in pieces]) for k in pieces[0]
    }
    last = np.flatnonzero(arrays['is_last'])
    stop = last[0] + 1 if last.size else len(arrays['is_last'])
    obs, act = split({k: x[:stop] for k, x in arrays.items()}, names)
    return Episode(
      observations=obs,
      actions={k: x[:-1] for k, x in act.items()},
      rewards=arrays['reward'][1:stop],
      terminal=bool(arrays['is_terminal'][stop - 1]),
      whole=bool(last.size),
    )

  return read
