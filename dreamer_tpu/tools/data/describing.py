"""Spaces of recorded data."""

from collections.abc import Iterable, Sequence

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

from dreamer_tpu.envs import Conversion, Rules, nested, pictures
from dreamer_tpu.envs.recorded import Recording, is_one_hot
from dreamer_tpu.errors import UserError, describe, prefixed
from dreamer_tpu.tools.data.episodes import Episode, Source

Recordings = dict[str, Recording]

# Integers up to here can be categories of actions.
_MOST_CLASSES = 2**15


def recordings(source: Source) -> tuple[Recordings, Recordings]:
  """Returns the observations and the actions of a source, by name.

  They are those of its first readable episode, unless the files name them.

  Raises:
    UserError: No episode can be read.
  """
  if source.spaces is not None:
    obs, act = source.spaces
    return (
      {k: Recording.of_space(x) for k, x in leaves(obs, 'observation').items()},
      {k: Recording.of_space(x) for k, x in leaves(act, 'action').items()},
    )
  episode = next(iter(_readable(source)))
  return (
    {k: Recording.of_array(x) for k, x in episode.observations.items()},
    {k: Recording.of_array(x) for k, x in episode.actions.items()},
  )


def leaves(space: gymnasium.Space, key: str) -> dict[str, gymnasium.Space]:
  """Returns the parts of a space that are arrays."""
  flat = nested.flatten(space, key)
  return {k: x for k, x in flat.items() if x.shape is not None and x.dtype}


def conversion(sources: Sequence[Source], rules: Rules) -> Conversion:
  """Returns the conversion of the spaces that the first source has.

  Where the files do not name spaces, observations are unbounded, but images
  are floats in [0, 1], or integers up to 255, of their size. Actions are
  categories if they are integers, as many as all sources hold, or if they are
  one-hot in all of them. Otherwise they are in [-1, 1].

  Args:
    sources: Sources, which are read once to find the categories of actions.
    rules: Options of the conversion.

  Raises:
    UserError: The agent cannot take the spaces.
  """
  first = sources[0]
  if first.spaces is not None:
    return Conversion(*first.spaces, rules)
  episode = next(iter(_readable(first)))
  numbers = {k: x for k, x in episode.observations.items() if _is_number(x)}
  act = {k: Recording.of_array(x) for k, x in episode.actions.items()}
  if not act or not numbers:
    raise UserError(
      f"'{first.name}' needs observations of numbers and an action, an array "
      f"whose name starts with 'action'; it has "
      f'{", ".join([*episode.observations, *act]) or "neither"}'
    )
  classes = _classes(sources, act)
  return Conversion(
    Dict({k: _observation_space(x) for k, x in numbers.items()}),
    Dict({k: _action_space(x, classes.get(k, 0)) for k, x in act.items()}),
    rules,
  )


def _readable(source: Source) -> Iterable[Episode]:
  """Yields the episodes that can be read; at least one."""
  failure, some = '', False
  for name, read in source.read():
    try:
      episode = read()
    except UserError as error:  # It concerns the whole source.
      raise prefixed(f"'{source.name}', {name}: ", error) from error
    except Exception as error:  # Named when it is imported.
      failure = failure or f'{name}: {describe(error)}'
      continue
    some = True
    yield episode
  if not some:
    raise UserError(
      f"'{source.name}': no episode can be read ({failure or 'it is empty'})."
    )


def _classes(sources: Sequence[Source], act: Recordings) -> dict[str, int]:
  """Returns the number of categories of each action that has some."""
  classes = {k: 0 for k, x in act.items() if x.dtype.kind in 'iub'}
  one_hot = {k: x.shape[0] for k, x in act.items() if _may_be_one_hot(x)}
  for source in sources:
    for episode in _readable(source) if classes or one_hot else ():
      for name in classes.keys() & episode.actions.keys():
        values = episode.actions[name]
        least, most = int(values.min(initial=0)), int(values.max(initial=0))
        if least < 0 or most >= _MOST_CLASSES:
          raise UserError(
            f"'{source.name}': integers of {name!r} are categories from 0, and "
            f'it has {least if least < 0 else most}; save numbers as floats in '
            '-1..1.'
          )
        classes[name] = max(classes[name], most + 1)
      for name in one_hot.keys() & episode.actions.keys():
        if not is_one_hot(episode.actions[name]):
          del one_hot[name]
      if not (classes or one_hot):
        break
  return classes | one_hot


def _may_be_one_hot(found: Recording) -> bool:
  return found.dtype.kind == 'f' and len(found.shape) == 1 < found.shape[0]


def _is_number(values: np.ndarray) -> bool:
  return values.dtype.kind in 'fiub'


def _observation_space(values: np.ndarray) -> gymnasium.Space:
  """Returns the space of an observation, given values [T, ...] of it."""
  kind: type = values.dtype.type
  shape = values.shape[1:]
  if values.dtype.kind == 'b':
    return Box(0, 1, shape, kind)
  if values.dtype.kind == 'f':
    low, high, white = -np.inf, np.inf, 1.0
  else:
    limits = np.iinfo(values.dtype)
    low, high, white = limits.min, limits.max, min(255, limits.max)
  image = Box(0, white, shape, kind)
  inside = bool(((values >= 0) & (values <= white)).all())
  return image if inside and pictures.of(image) else Box(low, high, shape, kind)


def _action_space(found: Recording, classes: int) -> gymnasium.Space:
  if not classes:
    return Box(-1, 1, found.shape, np.float32)
  if not found.shape or found.dtype.kind == 'f':
    return Discrete(classes)
  return gymnasium.spaces.MultiDiscrete(np.full(found.shape, classes))
