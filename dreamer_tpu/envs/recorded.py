"""Recorded episodes as observations and actions of the agent.

Recorded values are those of the environment, or those of the agent, as another
run has stored them: images in its size, categories from 0, actions in [-1, 1].
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Self

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from dreamer_tpu.envs import kinds, nested
from dreamer_tpu.envs.conversion import Conversion
from dreamer_tpu.errors import UserError

Arrays = dict[str, np.ndarray]
Convert = Callable[[np.ndarray], Arrays]

# Recorded values may be outside of their bounds by as much, relatively.
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Recording:
  """One recorded array, without the axis of time.

  Attributes:
    shape: Shape per step.
    dtype: Dtype.
    space: Its space, if the data name it.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  space: gymnasium.Space | None = None

  @classmethod
  def of_space(cls, space: gymnasium.Space) -> Self:
    """Returns the recording of values of a space without parts."""
    return cls(tuple(space.shape or ()), np.dtype(space.dtype), space)

  @classmethod
  def of_array(cls, array: np.ndarray) -> Self:
    """Returns the recording that an array [T, ...] is."""
    return cls(array.shape[1:], array.dtype)

  def __str__(self) -> str:
    if self.space is not None:
      return nested.describe(self.space)
    return f'{self.dtype} {list(self.shape)}'


class Recorded:
  """Converts recorded arrays to those of the agent.

  Args:
    conversion: Conversion of the environment's spaces.
    observations: Recorded observations by name. They may hold more than the
      agent sees; a single one may have any name.
    actions: Recorded actions by name, likewise.
    agents: Whether values that can be the agent's as well as the environment's
      are the agent's.
    sampled: Whether an agent has certainly sampled the actions, whose Gaussian
      has no bounds.

  Raises:
    UserError: An observation or action is missing or does not fit.
  """

  def __init__(
    self,
    conversion: Conversion,
    observations: Mapping[str, Recording],
    actions: Mapping[str, Recording],
    *,
    agents: bool,
    sampled: bool = False,
  ):
    self._conversion = conversion
    self._agents = agents
    self._sampled = sampled
    seen = conversion.own_observations
    self._observations = {
      name: self._observation(own, name, observations[name])
      for own, name in _match('observation', observations, seen).items()
    }
    # A MultiDiscrete of the environment can be several actions of the agent.
    parts = {x: conversion.made_of(x) for x in conversion.own_actions}
    self._actions = {
      part: self._agents_action(part, part, actions[part])
      for own, names in parts.items()
      if own not in actions and len(names) > 1 and actions.keys() >= set(names)
      for part in names
    }
    rest = [x for x in parts if not self._actions.keys() & set(parts[x])]
    self._actions |= {
      name: self._action(own, name, actions[name])
      for own, name in _match('action', actions, rest).items()
    }

  def unused(self, names: Iterable[str]) -> list[str]:
    """Returns those recorded observations that the agent does not see."""
    return sorted(set(names) - self._observations.keys())

  def observation(self, values: Mapping[str, np.ndarray]) -> Arrays:
    """Returns arrays [n, ...] for each observation of the agent.

    Args:
      values: Recorded arrays [n, ...] by name.

    Raises:
      ValueError: A value is missing or does not fit; names it.
    """
    return _convert('observation', self._observations, values)

  def action(self, values: Mapping[str, np.ndarray]) -> Arrays:
    """Returns arrays [n, ...] for each action; as `observation`."""
    return _convert('action', self._actions, values)

  def _observation(self, own: str, name: str, found: Recording) -> Convert:
    seen, theirs = (
      self._conversion.obs_space[own],
      self._conversion.own_observations[own],
    )
    if isinstance(seen, Box) and seen.dtype.kind == 'f':
      seen = kinds.vector_space(seen.shape)  # Bounds are seldom kept.
    forms: dict[bool, tuple[gymnasium.Space, Convert]] = {
      True: (seen, lambda x: {own: _as_agents(seen, x)}),
      False: (theirs, lambda x: {own: self._conversion.observe(own, x, 1)}),
    }
    return self._choose('observation', name, found, forms)

  def _action(self, own: str, name: str, found: Recording) -> Convert:
    theirs = self._conversion.own_actions[own]
    forms: dict[bool, tuple[gymnasium.Space, Convert]] = {
      False: (theirs, lambda x: self._conversion.invert(own, x, 1))
    }
    if own in self._conversion.act_space:
      seen = self._conversion.act_space[own]
      scaled = ''
      scales = isinstance(theirs, Box) and not _inside(theirs, seen)
      if scales and not self._sampled:
        scaled = f', for {nested.describe(theirs)} in the environment'
      forms[True] = (seen, lambda x: {own: _clipped(seen, x, scaled)})
      if _may_be_one_hot(found, seen):
        return lambda x: {own: _from_one_hot(x)}
    return self._choose('action', name, found, forms)

  def _agents_action(self, own: str, name: str, found: Recording) -> Convert:
    seen = self._conversion.act_space[own]
    return self._choose(
      'action',
      name,
      found,
      {False: (seen, lambda x: {own: _as_agents(seen, x)})},
    )

  def _choose(
    self,
    kind: str,
    name: str,
    found: Recording,
    forms: Mapping[bool, tuple[gymnasium.Space, Convert]],
  ) -> Convert:
    for form in (self._agents, not self._agents):
      if form in forms and _fits(found, forms[form][0]):
        space, convert = forms[form]
        if found.dtype.kind == 'f' and not isinstance(space, Box):
          return lambda x: convert(_whole_numbers(x))
        return convert
    raise UserError(
      f'{kind} {name!r} is {found} in the data and '
      f'{nested.describe(forms[False][0])} in the environment; use the '
      'environment, and its options, with which the data were recorded'
    )


def _match(
  kind: str,
  found: Mapping[str, Any],
  wanted: Collection[str],
) -> dict[str, str]:
  """Returns the recorded name of each wanted name."""
  if len(found) == len(wanted) == 1:
    return {next(iter(wanted)): next(iter(found))}
  missing = sorted(set(wanted) - found.keys())
  if missing:
    raise UserError(
      f'the data have no {kind} {missing[0]!r}, which the environment has; '
      f'they have {", ".join(sorted(found)) or "none"}'
    )
  return {name: name for name in wanted}


def _convert(
  kind: str,
  converts: Mapping[str, Convert],
  values: Mapping[str, np.ndarray],
) -> Arrays:
  result: Arrays = {}
  for name, convert in converts.items():
    if name not in values:
      raise ValueError(f'{kind} {name!r} is missing')
    try:
      result |= convert(values[name])
    except (ValueError, TypeError) as error:
      raise ValueError(f'{kind} {name!r} {error}') from error
  return result


def _fits(found: Recording, space: Any) -> bool:
  """Returns whether recorded values can be those of a space."""
  shape = tuple(space.shape or ())
  if found.shape != shape and {found.shape, shape} != {(), (1,)}:
    return False
  if isinstance(space, Box):
    if isinstance(found.space, (Discrete, MultiDiscrete, MultiBinary)):
      return False
    same = found.dtype.kind == space.dtype.kind and (
      found.dtype.kind == 'f' or found.dtype == space.dtype
    )
    return same and (found.space is None or _inside(found.space, space))
  if found.space is None:
    return found.dtype.kind in 'iubf'
  return _categories(found.space) == _categories(space)


def _inside(found: Any, space: Any) -> bool:
  """Returns whether the bounds of a Box are within those of another."""
  low, high = space.low.astype(np.float64), space.high.astype(np.float64)
  slack = _ROUNDING * np.maximum(1, np.where(np.isfinite(high), high, 1))
  return bool(
    (found.low >= low - slack).all() and (found.high <= high + slack).all()
  )


def _categories(space: Any) -> Any:
  """Returns the categories of a space to compare, without its dtype."""
  if isinstance(space, Discrete):
    return int(space.n), int(space.start)
  if isinstance(space, MultiDiscrete):
    return space.nvec.tolist(), space.start.tolist()
  if isinstance(space, MultiBinary):
    return space.shape
  return None


def is_one_hot(value: np.ndarray) -> bool:
  """Returns whether each row of an array [n, classes] is one-hot."""
  binary = (value == 0) | (value == 1)
  return bool(binary.all() and (value.sum(-1) == 1).all())


def _may_be_one_hot(found: Recording, space: gymnasium.Space) -> bool:
  return (
    isinstance(space, Discrete)
    and found.space is None
    and found.shape == (space.n,)
  )


def _from_one_hot(value: np.ndarray) -> np.ndarray:
  if not is_one_hot(value):
    raise ValueError('is not one-hot')
  return value.argmax(-1).astype(np.int32)


def _whole_numbers(value: np.ndarray) -> np.ndarray:
  """Returns floats as integers."""
  if not (value == np.rint(value)).all():
    raise ValueError(f'is {value.dtype}, categories are integers')
  return value.astype(np.int64)


def _clipped(space: Any, value: np.ndarray, scaled: str) -> np.ndarray:
  """Returns actions of the agent as the environment and the model use them.

  Args:
    space: Their space.
    value: Actions [n, ...].
    scaled: The environment's bounds, if they are others and these may be its
      own actions; then beyond -1..1 they are refused.
  """
  if not scaled:
    value = kinds.clip(space, value)
  return _as_agents(space, value, scaled)


def _as_agents(space: Any, value: np.ndarray, scaled: str = '') -> np.ndarray:
  """Returns values [n, ...] of a space of the agent.

  Args:
    space: The space.
    value: Values.
    scaled: Where numbers come from, for the message about wrong ones.
  """
  value = kinds.check_shape(value, tuple(space.shape), 1)
  if isinstance(space, Box) and space.dtype == np.uint8:
    if value.dtype != np.uint8:
      raise ValueError(f'is {value.dtype}, images are uint8')
    return value
  if isinstance(space, Box):
    value = value.astype(np.float32)
    wrong = value.size - int(np.isfinite(value).sum())
    if wrong:
      raise ValueError(f'is not finite in {wrong} of {value.size} values')
    least, most = space.low - _ROUNDING, space.high + _ROUNDING
    outside = (value < least) | (value > most)
    low, high = np.min(space.low), np.max(space.high)
  else:
    if value.dtype.kind not in 'iub':
      raise ValueError(f'is {value.dtype}, categories are integers')
    value = value.astype(np.int32)
    classes = space.n if isinstance(space, Discrete) else space.nvec
    outside = (value < 0) | (value >= classes)
    low, high = 0, int(np.max(classes)) - 1
  if outside.any():
    few = ', '.join(f'{x:g}' for x in value[outside].ravel()[:3])
    raise ValueError(
      f'has {int(outside.sum())} of {outside.size} values outside of '
      f'{low:g}..{high:g}{scaled}: {few}'
    )
  return value
