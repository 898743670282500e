"""From observations to tokens."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dreamer_tpu import errors, image_size
from dreamer_tpu.agent import distributions, layers, spaces
from dreamer_tpu.agent.ops import convolution, placement


def grid(
  space_dict: Mapping[str, spaces.Space], stages: int
) -> tuple[int, ...]:
  """Returns height and width of the images after halving `stages` times.

  Raises:
    UserError: The images differ in size or have an unsuitable one.
  """
  sizes = {v.shape[:2] for v in space_dict.values()}
  names = ', '.join(f"'{k}' {list(v.shape)}" for k, v in space_dict.items())
  if len(sizes) > 1:
    raise errors.UserError(f'Images must have one size in common: {names}.')
  return image_size.grid(f'The image {names}', sizes.pop(), stages)


class Encoder(nnx.Module):
  """Vectors through an MLP, images through convolutions."""

  def __init__(
    self,
    obs_space: Mapping[str, spaces.Space],
    config: Any,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    self.vectors = nnx.static(spaces.vectors(obs_space))
    self.images = nnx.static(spaces.images(obs_space))
    self.dtype = dtype
    self.size = 0
    if self.vectors:
      inputs = sum(v.size for v in self.vectors.values())
      self.mlp = layers.MLP(
        inputs, config.units, config.layers, dtype=dtype, rngs=rngs
      )
      self.size += config.units
    if self.images:
      depths = [config.depth * mult for mult in config.mults]
      height, width = grid(self.images, len(depths))
      channels = sum(v.shape[-1] for v in self.images.values())
      for i, depth in enumerate(depths):
        conv = convolution.Conv(
          channels, depth, config.kernel, dtype=dtype, rngs=rngs
        )
        setattr(self, f'conv{i}', conv)
        setattr(self, f'norm{i}', layers.Norm(depth, axes=('channels',)))
        channels = depth
      self.stages = len(depths)
      self.size += height * width * channels

  def __call__(self, obs: Mapping[str, jax.Array]) -> jax.Array:
    """Tokens [B, T, size] in the compute dtype.

    Args:
      obs: [B, T, ...] arrays of the observation space; others are ignored.
    """
    tokens = []
    if self.vectors:
      parts = {}
      for key, space in self.vectors.items():
        flat = spaces.flatten(space, obs[key])
        parts[key] = flat if space.classes else distributions.symlog(flat)
      x = jnp.concatenate(list(parts.values()), -1)
      tokens.append(self.mlp(x.astype(self.dtype)))
    if self.images:
      images = [obs[k] for k in self.images]
      tokens.append(placement.map_batch_rows(self._convolve, images))
    return jnp.concatenate(tokens, -1)

  def _convolve(self, images: list[jax.Array]) -> jax.Array:
    pixels = jnp.concatenate(images, -1)
    batch = pixels.shape[:2]
    pixels = pixels.reshape(-1, *pixels.shape[2:])
    pixels = placement.with_logical_constraint(
      pixels, 'images', None, None, None
    )
    x = pixels.astype(self.dtype) / 255 - 0.5
    for i in range(self.stages):
      x = self._stage(i, x)
    return x.reshape(*batch, -1)

  def _stage(self, i: int, x: jax.Array) -> jax.Array:
    """[N, h, w, c] -> [N, h / 2, w / 2, depth of stage `i`]."""
    conv = getattr(self, f'conv{i}')
    if i == 0:  # few channels, many pixels
      x = conv.of_cells(x)
    else:
      x = convolution.to_cells(conv(x))
      x = x.reshape(*x.shape[:-1], 4, -1)
    return getattr(self, f'norm{i}')(convolution.max_of_cells(x))
