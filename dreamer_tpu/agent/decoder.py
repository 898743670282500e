"""Decodes latent states to observations."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from dreamer_tpu.agent import distributions, encoder, layers, spaces
from dreamer_tpu.agent.ops import convolution, matmul, placement


@struct.dataclass
class SquaredError:
  """A point prediction.

  Attributes:
    prediction: float32 [B, T, ...].
  """

  prediction: jax.Array

  def loss(self, target: jax.Array) -> jax.Array:
    """Returns the squared error to `target` [B, T, ...], summed to [B, T]."""
    target = target.astype(jnp.float32).reshape(self.prediction.shape)
    error = jnp.square(self.prediction - target)
    return error.sum(tuple(range(2, error.ndim)))


class Decoder(nnx.Module):
  """Decodes vectors with an MLP and images with an upsampling CNN.

  The CNN starts from the sum of a block-diagonal layer of the deterministic
  state and an MLP of the stochastic state.

  Reconstructs the observations that `keys` of its options selects. If there are
  none, it has no parameters and no loss.
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
    selected = spaces.select(obs_space, config)
    self.vectors = nnx.static(spaces.vectors(selected))
    self.images = nnx.static(spaces.images(selected))
    kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    if self.vectors:
      inputs, units = stoch + deter, config.units
      self.mlp = layers.MLP(inputs, units, config.layers, **kw)
      axes = ('features', 'outputs')
      for key, space in self.vectors.items():
        head = layers.Linear(units, space.size, axes=axes, **kw)
        setattr(self, f'out_{spaces.parameter_name(key)}', head)
    if self.images:
      self._init_images(deter, stoch, config, kw)

  def _init_images(self, deter, stoch, config, kw):
    *depths, channels = [config.depth * mult for mult in config.mults]
    self.stages = len(depths)
    self.grid = encoder.grid('decoder', self.images, len(config.mults))
    self.blocks = config.blocks
    outputs = self.grid[0] * self.grid[1] * channels
    units = 2 * config.units
    self.deter_in = layers.BlockLinear(deter, outputs, config.blocks, **kw)
    self.stoch_in = layers.Layer(stoch, units, **kw)
    self.stoch_out = layers.Linear(units, outputs, **kw)
    self.norm = layers.Norm(channels, axes=('channels',))
    kw = dict(kw, op=convolution.upsample_conv)
    for i in reversed(range(self.stages)):
      conv = layers.Conv(channels, depths[i], config.kernel, **kw)
      setattr(self, f'conv{i}', conv)
      setattr(self, f'norm{i}', layers.Norm(depths[i], axes=('channels',)))
      channels = depths[i]
    outputs = sum(v.shape[-1] for v in self.images.values())
    self.image_out = layers.Conv(channels, outputs, config.kernel, **kw)

  def __call__(self, deter: jax.Array, stoch: jax.Array) -> dict[str, Any]:
    """Returns a prediction per observation key.

    Args:
      deter: [B, T, deter].
      stoch: [B, T, flat stoch].

    Returns:
      `Categorical` for integers, `SquaredError` in symlog space for floats
      and in [0, 1] for images.
    """
    heads = self._vector_heads(deter, stoch)
    if self.images:
      heads |= self._image_heads(self._start(deter, stoch))
    return heads

  def losses(
    self, deter: jax.Array, stoch: jax.Array, obs: Mapping[str, jax.Array]
  ) -> dict[str, jax.Array]:
    """Returns the reconstruction loss per key, float32 [B, T] each.

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
      start = self._start(deter, stoch)
      losses |= placement.map_batch_rows(self._image_losses, start, images)
    return losses

  def _vector_heads(self, deter, stoch) -> dict[str, Any]:
    heads: dict[str, Any] = {}
    if not self.vectors:
      return heads
    x = self.mlp.apply_split(stoch, deter)
    for key, space in self.vectors.items():
      linear = getattr(self, f'out_{spaces.parameter_name(key)}')
      out = linear(x).astype(jnp.float32)
      shape = (*out.shape[:2], *space.shape)
      if space.classes:
        logits = out.reshape(*shape, space.classes)
        heads[key] = distributions.Categorical.create(logits)
      else:
        heads[key] = SquaredError(prediction=out.reshape(shape))
    return heads

  def _image_losses(self, start, images) -> dict[str, jax.Array]:
    return {
      key: head.loss(images[key].astype(jnp.float32) / 255)
      for key, head in self._image_heads(start).items()
    }

  def _image_heads(self, start: jax.Array) -> dict[str, SquaredError]:
    sizes = [v.shape[-1] for v in self.images.values()]
    ends = [*itertools.accumulate(sizes)]
    parts = jnp.split(self._decode_images(start), ends[:-1], -1)
    return {
      key: SquaredError(prediction=part)
      for key, part in zip(self.images, parts, strict=True)
    }

  def _start(self, deter: jax.Array, stoch: jax.Array) -> jax.Array:
    """Returns the features [B, T, h, w, c] that the CNN starts from."""
    batch = deter.shape[:2]
    height, width = self.grid
    # Each block holds its own channels of the whole grid.
    rows = deter.reshape(-1, deter.shape[-1])
    a = self.deter_in(matmul.to_blocks(rows, self.blocks))
    a = a.reshape(self.blocks, a.shape[1], height, width, -1)
    a = jnp.moveaxis(a, 0, 3).reshape(a.shape[1], height, width, -1)
    b = self.stoch_out(self.stoch_in.apply_split(stoch)).reshape(a.shape)
    a, b = (
      placement.with_logical_constraint(y, 'images', None, None, None)
      for y in (a, b)
    )
    x = a + b
    return x.reshape(*batch, *x.shape[1:])

  def _decode_images(self, start: jax.Array) -> jax.Array:
    """Returns float32 images [B, T, H, W, C] in [0, 1]."""
    x = self.norm(start.reshape(-1, *start.shape[2:]))
    for i in reversed(range(self.stages)):
      conv, norm = getattr(self, f'conv{i}'), getattr(self, f'norm{i}')
      x = norm(conv(x))
    x = jax.nn.sigmoid(self.image_out(x).astype(jnp.float32))
    return x.reshape(*start.shape[:2], *x.shape[1:])
