"""Conversion between Gymnasium spaces and the kinds that the agent supports.

Observations become Box uint8 [H, W, C] (image), Box float32 of rank 0 to 2
(vector) or Discrete and MultiDiscrete int32 starting at 0 (categories). Actions
become Box float32 in [-1, 1], Discrete or MultiDiscrete. Nested Dict spaces
become flat, with keys joined by '/'.
"""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from dreamer_tpu.errors import UserError

RESERVED = ('reward', 'is_first', 'is_last', 'is_terminal', 'consec')
LOG = 'log/'
MAX_CLASSES = 1024  # Per element of an integer Box action.

Convert = Callable[[Any], Any]


def flatten(space: gymnasium.Space, key: str) -> dict[str, gymnasium.Space]:
  """Returns the leaves of a space by name; `key` names a space without parts.

  Raises:
    UserError: Two leaves share a name, or there is no leaf.
  """
  if not isinstance(space, Dict):
    return {key: space}
  leaves: dict[str, gymnasium.Space] = {}
  for name, child in space.spaces.items():
    for suffix, leaf in flatten(child, '').items():
      path = f'{name}/{suffix}' if suffix else str(name)
      if path in leaves:
        raise UserError(f'two parts of a Dict space are named {path!r}')
      leaves[path] = leaf
  if not leaves:
    raise UserError('a Dict space is empty')
  return leaves


def flatten_value(space: gymnasium.Space, value: Any, key: str) -> dict:
  """Returns the parts of a value of `space`, by the names of `flatten`."""
  if not isinstance(space, Dict):
    return {key: value}
  if not isinstance(value, Mapping) or set(value) != set(space.spaces):
    got = sorted(value) if isinstance(value, Mapping) else type(value).__name__
    raise ValueError(f'has {got}, its space has {sorted(space.spaces)}')
  parts = {}
  for name, child in space.spaces.items():
    for suffix, part in flatten_value(child, value[name], '').items():
      parts[f'{name}/{suffix}' if suffix else str(name)] = part
  return parts


def check_names(obs: Mapping[str, Any], act: Mapping[str, Any]) -> None:
  """Checks that no key is reserved or both an observation and an action.

  Raises:
    UserError: Names the key.
  """
  for kind, keys in (('observation', obs), ('action', act)):
    for key in keys:
      if key in RESERVED or key.startswith('latent/'):
        raise UserError(
          f'{kind} key {key!r} is reserved: rename it (reserved: '
          f'{", ".join(RESERVED)} and latent/...)'
        )
      if kind == 'action' and key.startswith(LOG):
        raise UserError(f'action key {key!r}: log/... is only for observations')
      if kind == 'action' and key in obs:
        raise UserError(
          f'key {key!r} is in the observations and in the actions: rename one'
        )
  if all(key.startswith(LOG) for key in obs):
    raise UserError('there is nothing to observe except log/... keys')


def observation_leaf(
  name: str, space: gymnasium.Space
) -> tuple[gymnasium.Space, Convert]:
  """Returns the agent's space of one observation and the conversion to it.

  The conversion raises ValueError, with the reason, for a value outside of the
  space. Integer boxes are quantities and become float32; Discrete,
  MultiDiscrete, MultiBinary and bool boxes are categories and become int32.
  All elements of a MultiDiscrete get the largest number of categories.

  Raises:
    UserError: The space is not supported.
  """
  if name.startswith(LOG):
    return _log_leaf(name, space)
  if isinstance(space, (Discrete, MultiDiscrete, MultiBinary)) or (
    isinstance(space, Box) and space.dtype == np.bool_
  ):
    return _category_leaf(name, space)
  if not isinstance(space, Box):
    raise _refuse('observation', name, space)
  rank = len(space.shape)
  if is_image(space):
    return _image_leaf(name, space)
  if rank > 2:
    raise UserError(
      f'observation {name!r}: {space.dtype} of rank {rank} is neither an image '
      '(uint8, height x width x channels) nor a vector (rank 0 to 2)'
    )
  low, high = (np.asarray(x, np.float32) for x in (space.low, space.high))
  return Box(low, high, space.shape, np.float32), _to_float(space.shape)


def action_leaf(
  name: str, space: gymnasium.Space
) -> tuple[dict[str, gymnasium.Space], Convert]:
  """Returns the agent's spaces of one action and the conversion from them.

  The conversion maps the dict of agent actions to the environment's action.
  Elements with two finite bounds are scaled from [-1, 1]; others are clipped to
  the bound they have. A MultiDiscrete with unequal sizes becomes one Discrete
  per element.

  Raises:
    UserError: The space is not supported.
  """
  if isinstance(space, Discrete):
    low, kind = space.start, space.dtype.type
    return {name: discrete_space(space.n)}, lambda act: kind(act[name] + low)
  if isinstance(space, MultiBinary):
    classes = MultiDiscrete(np.full(space.shape, 2), np.int32)
    return {name: classes}, lambda act: act[name].astype(space.dtype)
  if isinstance(space, MultiDiscrete):
    return _multi_discrete_action(name, space)
  if isinstance(space, Box) and np.issubdtype(space.dtype, np.integer):
    return _integer_action(name, space)
  if isinstance(space, Box) and np.issubdtype(space.dtype, np.floating):
    return _float_action(name, space)
  raise _refuse('action', name, space)


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


def is_image(space: gymnasium.Space) -> bool:
  """Returns whether a space is an image: uint8 [H, W] or [H, W, C]."""
  shape = space.shape or ()
  return (
    isinstance(space, Box) and space.dtype == np.uint8 and len(shape) in (2, 3)
  )


def _refuse(what: str, name: str, space: gymnasium.Space) -> UserError:
  kinds = 'Box, Discrete, MultiDiscrete, MultiBinary or a Dict of these'
  return UserError(
    f'{what} {name!r} is a {type(space).__name__} space of dtype '
    f'{space.dtype}, which is not supported: use {kinds}'
  )


def _category_leaf(name, space):
  shape = space.shape
  if isinstance(space, Discrete):
    classes, start = np.asarray(space.n), space.start
  elif isinstance(space, MultiDiscrete):
    classes, start = space.nvec, space.start
  else:
    classes, start = np.full(shape, 2), 0
  if len(shape) > 2:
    raise _refuse('observation', name, space)
  largest = int(classes.max())
  result = (
    MultiDiscrete(np.full(shape, largest), np.int32)
    if shape
    else discrete_space(largest)
  )

  def convert(value):
    value = np.asarray(value)
    _check_shape(value, shape)
    if value.dtype.kind not in 'iub':
      raise ValueError(f'is {value.dtype}, its space holds integers')
    value = value.astype(np.int64) - start
    if np.any(value < 0) or np.any(value >= classes):
      raise ValueError(f'has a value outside of its space {space}')
    return value.astype(np.int32)

  return result, convert


def _image_leaf(name, space):
  shape = space.shape
  if len(shape) == 3 and shape[0] <= 4 < shape[2]:
    raise UserError(
      f'observation {name!r} has shape {shape}, channels first: images are '
      'height x width x channels, transpose it'
    )
  given = shape
  shape = (*given, 1) if len(given) == 2 else given

  def convert(value):
    value = np.asarray(value)
    _check_shape(value, given)
    if value.dtype != np.uint8:
      raise ValueError(f'is {value.dtype}, its space says uint8')
    return value.reshape(shape)

  return image_space(shape), convert


def _log_leaf(name, space):
  if is_image(space):
    return _image_leaf(name, space)
  if space.shape == ():
    return vector_space(()), _to_float((), finite=False)
  raise UserError(
    f'observation {name!r} has shape {space.shape}: log/... keys are scalars '
    'or uint8 images'
  )


def _to_float(shape: tuple[int, ...], finite: bool = True) -> Convert:
  def convert(value):
    value = np.asarray(value, np.float32)
    _check_shape(value, shape)
    if finite and not np.isfinite(value).all():
      raise ValueError(f'is not finite: {value.tolist()}')
    return value

  return convert


def _check_shape(value: np.ndarray, shape: tuple[int, ...]) -> None:
  if value.shape != shape:
    raise ValueError(f'has shape {value.shape}, its space says {shape}')


def _multi_discrete_action(name, space):
  start, dtype, nvec = space.start, space.dtype, space.nvec
  if nvec.ndim > 2:
    raise _refuse('action', name, space)
  if (nvec == nvec.flat[0]).all():
    result = MultiDiscrete(np.asarray(nvec), np.int32)
    return {name: result}, lambda act: (act[name] + start).astype(dtype)
  keys = [f'{name}/{i}' for i in range(nvec.size)]
  parts = {
    key: discrete_space(n) for key, n in zip(keys, nvec.flat, strict=True)
  }

  def convert(act):
    value = np.array([act[key] for key in keys]).reshape(nvec.shape)
    return (value + start).astype(dtype)

  return parts, convert


def _integer_action(name, space):
  low, high = space.low, space.high
  if np.max(high.astype(np.float64) - low) >= MAX_CLASSES:
    raise UserError(
      f'action {name!r} is an integer Box with more than {MAX_CLASSES} values '
      'per element: make it a float Box'
    )
  classes = high.astype(np.int64) - low.astype(np.int64) + 1
  if not space.shape:
    start, kind = int(low), space.dtype.type
    return {name: discrete_space(classes)}, lambda act: kind(act[name] + start)
  nvec = MultiDiscrete(classes, space.dtype, start=low)
  return _multi_discrete_action(name, nvec)


def _float_action(name, space):
  low, high = space.low.astype(np.float64), space.high.astype(np.float64)
  if len(space.shape) > 2:
    raise _refuse('action', name, space)
  bounded = np.isfinite(low) & np.isfinite(high)
  least = np.where(bounded, -1.0, low).astype(np.float32)
  most = np.where(bounded, 1.0, high).astype(np.float32)
  unit = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
  center, scale = (unit[1] + unit[0]) / 2, (unit[1] - unit[0]) / 2

  def convert(act):
    value = np.clip(np.asarray(act[name], np.float64), least, most)
    value = np.clip(value * scale + center, low, high)
    return value.astype(space.dtype)

  return {name: Box(least, most, space.shape, np.float32)}, convert
