"""Heads: reward, continuation, value and policy."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dreamer_tpu.agent import layers, spaces
from dreamer_tpu.agent.distributions import (
  Bernoulli,
  BoundedNormal,
  Categorical,
  TwoHot,
)

AXES = ('features', 'outputs')
# [..., D] and [..., S * C], see `RSSM.feat`.
Feat = tuple[jax.Array, jax.Array]
Noise = Mapping[str, jax.Array]


class ScalarHead(nnx.Module):
  """Predicts a scalar over symexp bins: the reward or the value."""

  def __init__(
    self, inputs: int, config: Any, *, dtype: jnp.dtype, rngs: nnx.Rngs
  ):
    kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    self.mlp = layers.MLP(inputs, config.units, config.layers, **kw)
    self.out = layers.Linear(
      config.units, config.bins, outscale=config.outscale, axes=AXES, **kw
    )

  def __call__(self, feat: Feat) -> TwoHot:
    """Returns the distribution of a scalar [...]."""
    return TwoHot(logits=self.out(self.mlp.apply_split(*feat)))


class BinaryHead(nnx.Module):
  """Predicts the probability that the episode continues."""

  def __init__(
    self, inputs: int, config: Any, *, dtype: jnp.dtype, rngs: nnx.Rngs
  ):
    kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    self.mlp = layers.MLP(inputs, config.units, config.layers, **kw)
    self.out = layers.Linear(
      config.units, 1, outscale=config.outscale, axes=AXES, **kw
    )

  def __call__(self, feat: Feat) -> Bernoulli:
    """Returns the distribution of a binary [...]."""
    logit = self.out(self.mlp.apply_split(*feat))[..., 0]
    return Bernoulli(logit=logit.astype(jnp.float32))


class PolicyHead(nnx.Module):
  """Predicts a distribution per action key."""

  def __init__(
    self,
    inputs: int,
    act_space: Mapping[str, spaces.Space],
    config: Any,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    self.spaces = nnx.static(dict(sorted(act_space.items())))
    self.unimix = config.unimix
    self.bounds = (config.minstd, config.maxstd)
    kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    self.mlp = layers.MLP(inputs, config.units, config.layers, **kw)
    kw |= dict(outscale=config.outscale, axes=AXES)
    for key, parts in self._outputs().items():
      for name in parts:
        out = layers.Linear(config.units, self.spaces[key].size, **kw)
        setattr(self, name, out)

  def _outputs(self) -> dict[str, list[str]]:
    """Names of the output layers per action key."""
    return {
      key: [
        f'{spaces.parameter_name(key)}_{part}'
        for part in (['logits'] if space.classes else ['mean', 'std'])
      ]
      for key, space in self.spaces.items()
    }

  def __call__(
    self, feat: Feat, cached: Mapping[str, Any] | None = None
  ) -> 'ActionDist':
    """Returns the distribution of the action.

    Args:
      feat: Features, see `RSSM.feat`.
      cached: `ActionDist.linear`, if it has been computed before.
    """
    cached = cached or {}
    linear: dict[str, Any] = {}
    x, linear['mlp'] = self.mlp.with_preactivations(
      *feat, cached=cached.get('mlp')
    )
    dists: dict[str, Categorical | BoundedNormal] = {}
    for key, names in self._outputs().items():
      space = self.spaces[key]
      for name in names:
        linear[name] = getattr(self, name)(x, cached=cached.get(name))
      shape = (*x.shape[:-1], *space.shape)
      if space.classes:
        logits = linear[names[0]].reshape(*shape, space.classes)
        dists[key] = Categorical.create(logits, self.unimix)
      else:
        mean, std = (linear[name].reshape(shape) for name in names)
        dists[key] = BoundedNormal.create(mean, std, *self.bounds)
    return ActionDist(dists, self.spaces, linear)

  def noise(
    self, key: jax.Array | None, batch: tuple[int, ...]
  ) -> Noise | None:
    """Draws noise to sample actions [*batch, ...] per key.

    Args:
      key: PRNG key; None returns None, which stands for modes.
      batch: Leading axes.
    """
    if key is None:
      return None
    keys = jax.random.split(key, len(self.spaces))
    return {
      name: _kind(space).noise(k, (*batch, *space.shape))
      for (name, space), k in zip(self.spaces.items(), keys, strict=True)
    }


def _kind(space: spaces.Space) -> type[Categorical] | type[BoundedNormal]:
  return Categorical if space.classes else BoundedNormal


class ActionDist:
  """Independent action distributions, one per key.

  Attributes:
    dists: Per key.
    spaces: Per key.
    linear: Results of all linear layers of the head.
  """

  def __init__(
    self,
    dists: Mapping[str, Categorical | BoundedNormal],
    act_space: Mapping[str, spaces.Space],
    linear: Mapping[str, Any],
  ):
    self.dists = dists
    self.spaces = act_space
    self.linear = linear

  def sample(self, noise: Noise | None) -> dict[str, jax.Array]:
    """Samples an action [..., *space.shape] per key.

    Args:
      noise: From `PolicyHead.noise`; None for the mode.
    """
    return {
      name: dist.sample(None if noise is None else noise[name])
      for name, dist in self.dists.items()
    }

  def log_prob(self, action: Mapping[str, jax.Array]) -> jax.Array:
    """Returns float32 [...], summed over keys and elements."""
    parts = [
      self._reduce(k, dist.log_prob(action[k]))
      for k, dist in self.dists.items()
    ]
    return sum(parts[1:], start=parts[0])

  def entropy(self) -> dict[str, jax.Array]:
    """Returns float32 [...] per key in nats, summed over elements."""
    return {k: self._reduce(k, d.entropy()) for k, d in self.dists.items()}

  def _reduce(self, key: str, x: jax.Array) -> jax.Array:
    rank = len(self.spaces[key].shape)
    return x.sum(tuple(range(x.ndim - rank, x.ndim)))
