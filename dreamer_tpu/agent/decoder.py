"""From latent states back to observations."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from dreamer_tpu.agent import distributions, encoder, layers, spaces
from dreamer_tpu.agent.ops import convolution, placement


@struct.dataclass
class SquaredError:
  """A point prediction. `prediction` is float32 [B, T, ...]."""

  prediction: jax.Array

  def loss(self, target: jax.Array) -> jax.Array:
    """Squared error to `target` [B, T, ...], summed to [B, T]."""
    target = target.astype(jnp.float32).reshape(self.prediction.shape)
    error = jnp.square(self.prediction - target)
    return error.sum(tuple(range(2, error.ndim)))


class Decoder(nnx.Module):
  """Vectors from an MLP, images from upsampling convolutions.

  The image path starts from a grid of features that block-diagonal (from the
  deterministic state) and dense (from the stochastic state) layers add up to.
  """

  def __init__(
    self,
    obs_space: Mapping[str, spaces.Space],
    deter: int,
    stoch: int,
    config: Any,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    self.vectors = nnx.static(spaces.vectors(obs_space))
    self.images = nnx.static(spaces.images(obs_space))
    self.dtype = dtype
    if self.vectors:
      self.mlp = layers.MLP(
        stoch + deter, config.units, config.layers, dtype=dtype, rngs=rngs
      )
      axes = ('features', 'outputs')
      for key, space in self.vectors.items():
        head = layers.Linear(
          config.units, space.size, dtype=dtype, rngs=rngs, axes=axes
        )
        setattr(self, f'out_{name(key)}', head)
    if self.images:
      self._init_images(deter, stoch, config, dtype, rngs)

  def _init_images(self, deter, stoch, config, dtype, rngs):
    depths = [config.depth * mult for mult in config.mults]
    self.grid = encoder.grid(self.images, len(depths))
    self.blocks = config.blocks
    height, width = self.grid
    cells = height * width * depths[-1]
    units = 2 * config.units
    self.deter_in = layers.BlockLinear(
      deter, cells, config.blocks, dtype=dtype, rngs=rngs
    )
    self.stoch_in = layers.Layer(stoch, units, dtype=dtype, rngs=rngs)
    self.stoch_out = layers.Linear(units, cells, dtype=dtype, rngs=rngs)
    self.norm = layers.Norm(depths[-1], axes=('channels',))
    self.stages = len(depths) - 1
    inputs = depths[-1]
    for i, depth in reversed(list(enumerate(depths[:-1]))):
      conv = convolution.Conv(
        inputs, depth, config.kernel, dtype=dtype, rngs=rngs
      )
      setattr(self, f'conv{i}', conv)
      setattr(self, f'norm{i}', layers.Norm(depth, axes=('channels',)))
      inputs = depth
    channels = sum(v.shape[-1] for v in self.images.values())
    self.image_out = convolution.Conv(
      inputs, channels, config.kernel, dtype=dtype, rngs=rngs
    )

  def __call__(self, deter: jax.Array, stoch: jax.Array) -> dict[str, Any]:
    """A prediction per observation key.

    Args:
      deter: [B, T, deter].
      stoch: [B, T, flat stoch].

    Returns:
      `Categorical` for integers, `SquaredError` in symlog space for floats
      and in [0, 1] for images.
    """
    heads = self._vector_heads(deter, stoch)
    if self.images:
      heads |= self._image_heads(self._cells(deter, stoch))
    return heads

  def losses(
    self, deter: jax.Array, stoch: jax.Array, obs: Mapping[str, jax.Array]
  ) -> dict[str, jax.Array]:
    """Reconstruction loss per key, float32 [B, T] each.

    Args:
      deter: [B, T, deter].
      stoch: [B, T, flat stoch].
      obs: [B, T, ...] arrays of the observation space; others are ignored.
    """
    losses = {}
    for key, head in self._vector_heads(deter, stoch).items():
      if self.vectors[key].classes:
        logp = head.log_prob(obs[key])
        losses[key] = -logp.sum(tuple(range(2, logp.ndim)))
      else:
        target = distributions.symlog(obs[key].astype(jnp.float32))
        losses[key] = head.loss(target)
    if self.images:
      images = {k: obs[k] for k in self.images}
      cells = self._cells(deter, stoch)
      losses |= placement.map_batch_rows(self._image_losses, cells, images)
    return losses

  def _vector_heads(self, deter, stoch) -> dict[str, Any]:
    heads: dict[str, Any] = {}
    if not self.vectors:
      return heads
    x = self.mlp.of_state(stoch, deter)
    for key, space in self.vectors.items():
      out = getattr(self, f'out_{name(key)}')(x).astype(jnp.float32)
      if space.classes:
        shape = (*out.shape[:2], *space.shape, space.classes)
        heads[key] = distributions.Categorical.create(out.reshape(shape))
      else:
        shape = (*out.shape[:2], *space.shape)
        heads[key] = SquaredError(prediction=out.reshape(shape))
    return heads

  def _image_heads(self, cells: jax.Array) -> dict[str, SquaredError]:
    sizes = [v.shape[-1] for v in self.images.values()]
    ends = [*itertools.accumulate(sizes)]
    parts = jnp.split(self._upsample(cells), ends[:-1], -1)
    return {
      key: SquaredError(prediction=part)
      for key, part in zip(self.images, parts, strict=True)
    }

  def _image_losses(self, cells, images) -> dict[str, jax.Array]:
    return {
      key: head.loss(images[key].astype(jnp.float32) / 255)
      for key, head in self._image_heads(cells).items()
    }

  def _cells(self, deter: jax.Array, stoch: jax.Array) -> jax.Array:
    """[B, T, h, w, c], what images are upsampled from."""
    batch = deter.shape[:2]
    height, width = self.grid
    # Each block holds its own channels of the whole grid.
    a = self.deter_in.by_block(layers.to_blocks(deter, self.blocks))
    a = a.reshape(self.blocks, a.shape[1], height, width, -1)
    a = jnp.moveaxis(a, 0, 3).reshape(a.shape[1], height, width, -1)
    b = self.stoch_out(self.stoch_in.of_state(stoch)).reshape(a.shape)
    a, b = (
      placement.with_logical_constraint(y, 'images', None, None, None)
      for y in (a, b)
    )
    x = a + b
    return x.reshape(*batch, *x.shape[1:])

  def _upsample(self, cells: jax.Array) -> jax.Array:
    """[B, T, h, w, c] -> float32 [B, T, H, W, C] in [0, 1]."""
    x = self.norm(cells.reshape(-1, *cells.shape[2:]))
    for i in reversed(range(self.stages)):
      x = self._stage(i, x)
    x = self.image_out.of_upsampled(x).astype(jnp.float32)
    x = convolution.to_pixels(jax.nn.sigmoid(x))
    return x.reshape(*cells.shape[:2], *x.shape[1:])

  def _stage(self, i: int, x: jax.Array) -> jax.Array:
    """[N, h, w, c] -> [N, 2 h, 2 w, depth of stage `i`]."""
    x = getattr(self, f'conv{i}').of_upsampled(x)
    norm = getattr(self, f'norm{i}')
    if self.dtype == jnp.float32:  # on CPU, one pass writes the pixels
      return convolution.to_pixels(norm(x))
    # Else XLA for TPUs would keep float32 copies, and what the norm multiplies
    # by spread over all channels: 1.9 times the memory of the whole decoder.
    return norm(jax.lax.optimization_barrier(convolution.to_pixels(x)))


def name(key: str) -> str:
  """A key as part of a parameter name, in which '/' separates modules."""
  return key.replace('/', '.')
