"""Encodes observations to tokens."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dreamer_tpu import errors, image_size
from dreamer_tpu.agent import distributions, layers, spaces
from dreamer_tpu.agent.ops import convolution, placement


def grid(
  part: str, space_dict: Mapping[str, spaces.Space], stages: int
) -> tuple[int, ...]:
  """Returns height and width of images after halving them `stages` times.

  Args:
    part: 'encoder' or 'decoder', for the error.
    space_dict: Space per image.
    stages: Number of times that the encoder halves them.

  Raises:
    UserError: The images differ in size, or the size is unsuitable.
  """
  sizes = {v.shape[:2] for v in space_dict.values()}
  names = ', '.join(f"'{k}' {list(v.shape)}" for k, v in space_dict.items())
  if len(sizes) > 1:
    raise errors.UserError(
      f'Images of the {part} must have one size in common: {names}; resize '
      f'them, or choose with agent.{part}.keys.'
    )
  return image_size.grid(f'The image {names}', sizes.pop(), stages)


class Encoder(nnx.Module):
  """Encodes vectors with an MLP and images with a CNN.

  Reads the observations that `keys` of its options selects.

  Attributes:
    keys: Keys of these observations.
    size: Features of a token.
  """

  def __init__(
    self,
    obs_space: Mapping[str, spaces.Space],
    config: Any,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    selected = spaces.select(obs_space, config)
    if not selected:
      raise errors.UserError(
        f"agent.encoder.keys='{config['keys']}' leaves the encoder nothing to "
        f'read: it fully matches none of {", ".join(obs_space)}.'
      )
    self.vectors = nnx.static(spaces.vectors(selected))
    self.images = nnx.static(spaces.images(selected))
    self.keys = tuple(selected)
    self.dtype = dtype
    self.size = 0
    kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    if self.vectors:
      inputs = sum(v.size for v in self.vectors.values())
      self.mlp = layers.MLP(inputs, config.units, config.layers, **kw)
      self.size += config.units
    if self.images:
      self.stages = len(config.mults)
      height, width = grid('encoder', self.images, self.stages)
      channels = sum(v.shape[-1] for v in self.images.values())
      for i, mult in enumerate(config.mults):
        depth = config.depth * mult
        op = convolution.conv_max_pool2x2
        conv = layers.Conv(channels, depth, config.kernel, op=op, **kw)
        setattr(self, f'conv{i}', conv)
        setattr(self, f'norm{i}', layers.Norm(depth, axes=('channels',)))
        channels = depth
      self.size += height * width * channels

  def __call__(self, obs: Mapping[str, jax.Array]) -> jax.Array:
    """Returns tokens [B, T, size] in the compute dtype.

    Args:
      obs: [B, T, ...] arrays of the observation space; others are ignored.
    """
    tokens = []
    if self.vectors:
      parts = []
      for key, space in self.vectors.items():
        x = spaces.features(space, obs[key])
        parts.append(x if space.classes else distributions.symlog(x))
      tokens.append(self.mlp(jnp.concatenate(parts, -1).astype(self.dtype)))
    if self.images:
      images = [obs[k] for k in self.images]
      tokens.append(placement.map_batch_rows(self._encode_images, images))
    return jnp.concatenate(tokens, -1)

  def _encode_images(self, images: list[jax.Array]) -> jax.Array:
    pixels = jnp.concatenate(images, -1)
    x = pixels.reshape(-1, *pixels.shape[2:])
    x = placement.with_logical_constraint(x, 'images', None, None, None)
    x = x.astype(self.dtype) / 255 - 0.5
    for i in range(self.stages):
      conv, norm = getattr(self, f'conv{i}'), getattr(self, f'norm{i}')
      x = norm(conv(x))
    return x.reshape(*pixels.shape[:2], -1)
