"""Spaces of observations and actions, as the agent sees them."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer_tpu import errors

# Keys of a batch that are not observations; envs/conversion.py has them too.
RESERVED = ('reward', 'is_first', 'is_last', 'is_terminal', 'consec')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Space:
  """One array of an observation or an action, without the batch axis.

  Attributes:
    shape: Shape of the array.
    dtype: NumPy name of its dtype.
    classes: Number of values of an integer element, 0 if it is continuous.
  """

  shape: tuple[int, ...]
  dtype: str
  classes: int = 0

  @property
  def is_image(self) -> bool:
    """Returns true for uint8 [height, width, channels]."""
    return self.dtype == 'uint8' and len(self.shape) == 3

  @property
  def size(self) -> int:
    """Returns the number of features, see `features`."""
    return math.prod(self.shape) * max(1, self.classes)


def check(obs: Mapping[str, Space], act: Mapping[str, Space]) -> None:
  """Refuses spaces that no encoder, decoder or policy head supports.

  Raises:
    UserError: Names the first such key, its space and the supported ones.
  """
  if not obs:
    raise errors.UserError('The observation space is empty.')
  if not act:
    raise errors.UserError('The action space is empty.')
  for key, space in obs.items():
    if key in RESERVED or key in act or key.startswith('latent/'):
      raise errors.UserError(
        f"The observation '{key}' has a reserved name: rename it "
        f'(reserved: {", ".join([*RESERVED, *act])}).'
      )
    if not space.is_image and len(space.shape) > 2:
      raise errors.UserError(
        f"The observation '{key}' ({space.dtype}{list(space.shape)}) is "
        'neither an image (uint8 of rank 3) nor a vector (rank 0 to 2).'
      )
  for key, space in act.items():
    floating = np.issubdtype(np.dtype(space.dtype), np.floating)
    if len(space.shape) > 1 or (space.classes == 0) != floating:
      raise errors.UserError(
        f"The action '{key}' ({space.dtype}{list(space.shape)}) is neither "
        'categorical (integer) nor continuous (float) of rank 0 or 1.'
      )


def sample(
  spaces: Mapping[str, Space], key: jax.Array, batch: int
) -> dict[str, jax.Array]:
  """Draws uniformly random actions.

  Args:
    spaces: Space per action key.
    key: PRNG key.
    batch: Number N of actions.

  Returns:
    [N, ...] per key; continuous actions are in [-1, 1].
  """
  keys = jax.random.split(key, len(spaces))
  return {
    name: _sample(space, key, (batch, *space.shape))
    for key, (name, space) in zip(keys, sorted(spaces.items()), strict=True)
  }


def _sample(space: Space, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  if space.classes:
    return jax.random.randint(key, shape, 0, space.classes, space.dtype)
  return jax.random.uniform(key, shape, space.dtype, -1, 1)


def select(spaces: Mapping[str, Space], config: Any) -> dict[str, Space]:
  """Returns the observations that `config.keys` fully matches.

  Args:
    spaces: Space per observation key.
    config: Options of the encoder or the decoder. Those of older checkpoints
      have no `keys` and select all.
  """
  regex = config.get('keys', '.*')
  return {k: v for k, v in spaces.items() if re.fullmatch(regex, k)}


def vectors(spaces: Mapping[str, Space]) -> dict[str, Space]:
  """Returns the spaces that are not images, sorted by key."""
  return {k: v for k, v in sorted(spaces.items()) if not v.is_image}


def images(spaces: Mapping[str, Space]) -> dict[str, Space]:
  """Returns the spaces that are images, sorted by key."""
  return {k: v for k, v in sorted(spaces.items()) if v.is_image}


def features(space: Space, x: jax.Array) -> jax.Array:
  """Returns the features of an array: integers one-hot, floats unchanged.

  Args:
    space: Space of the array.
    x: [..., *space.shape].

  Returns:
    float32 [..., space.size].
  """
  batch = x.shape[: x.ndim - len(space.shape)]
  if space.classes:
    x = jax.nn.one_hot(x, space.classes)
  return x.astype(jnp.float32).reshape(*batch, space.size)


def concat(
  spaces: Mapping[str, Space], arrays: Mapping[str, jax.Array]
) -> jax.Array:
  """Concatenates the features of all arrays in sorted key order."""
  parts = [features(space, arrays[k]) for k, space in sorted(spaces.items())]
  return jnp.concatenate(parts, -1)


def parameter_name(key: str) -> str:
  """Returns a key as part of a parameter name, where '/' separates modules."""
  return key.replace('/', '.')
