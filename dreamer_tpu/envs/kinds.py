"""Spaces of the kinds that the agent supports.

Images are uint8 [H, W, C], vectors float32 of rank 0 to 2, categories int32,
from 0. Actions are categories, or float32 in [-1, 1].
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete

SUPPORTED = (
  'use Box, Discrete, MultiDiscrete, MultiBinary, or Dict or Tuple of these'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObservationLeaf:
  """One observation of the agent.

  Attributes:
    space: Space of the observation as the agent sees it.
    convert: Function of an environment's value [..., *shape] and the number of
      its leading axes. It raises ValueError, with the reason, for a value
      outside of the environment's space.
    traced: The same function of one value [*shape], a JAX array inside a
      compiled program; without checks.
    note: How the value is reinterpreted; '' if it is what one expects.
  """

  space: gymnasium.Space
  convert: Callable[[Any, int], np.ndarray]
  traced: Callable[[Any], Any]
  note: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionLeaf:
  """One action of the environment.

  Attributes:
    spaces: Space of each of the agent's actions that make it.
    convert: Function of the agent's actions [..., *shape] by key and the number
      of leading axes. It returns the environment's action.
    traced: The same function of JAX arrays inside a compiled program.
    invert: Function of the environment's action and the number of leading axes.
      It returns the agent's actions by key, and raises ValueError, with the
      reason, for an action outside of the environment's space.
    note: How values are reinterpreted; '' if it is what one expects.
  """

  spaces: dict[str, gymnasium.Space]
  convert: Callable[[dict[str, Any], int], Any]
  traced: Callable[[dict[str, Any]], Any]
  invert: Callable[[Any, int], dict[str, np.ndarray]]
  note: str = ''


def image_space(shape: tuple[int, ...]) -> gymnasium.Space:
  """Returns the space of a uint8 image [H, W, C]."""
  kind: Any = np.uint8
  return Box(0, 255, shape, kind)


def vector_space(shape: tuple[int, ...]) -> gymnasium.Space:
  """Returns the space of unbounded float32 values."""
  return Box(-np.inf, np.inf, shape, np.float32)


def discrete_space(n: int) -> gymnasium.Space:
  """Returns the space of one of n categories, as int32."""
  kind: Any = np.int32
  return Discrete(int(n), dtype=kind)


def category_space(shape: tuple[int, ...], classes: int) -> gymnasium.Space:
  """Returns the space of elements with the same number of categories."""
  if not shape:
    return discrete_space(classes)
  return MultiDiscrete(np.full(shape, classes), np.int32)


def clip(space: Any, value: np.ndarray) -> np.ndarray:
  """Returns actions within the bounds of a Box; others as they are.

  A Gaussian policy samples beyond them. Environment and world model take the
  bounds instead.
  """
  if isinstance(space, Box):
    return np.clip(value, space.low, space.high)
  return value


def at_most_rank(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
  """Returns a shape, flat if it has more axes than the agent supports."""
  return shape if len(shape) <= rank else (int(np.prod(shape)),)


def check_shape(value: np.ndarray, shape: tuple[int, ...], lead: int) -> Any:
  """Returns values [..., *shape]; shapes () and (1,) count as the same.

  Raises:
    ValueError: The value has another shape.
  """
  own = value.shape[lead:]
  if own != shape:
    if {own, shape} != {(), (1,)}:
      raise ValueError(f'has shape {own}, its space says {shape}')
    value = value.reshape((*value.shape[:lead], *shape))
  return value
