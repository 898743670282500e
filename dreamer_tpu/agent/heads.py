"""Predictions from `feat`: reward, continuation, value and policy."""

from collections.abc import Mapping, Sequence
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
# [..., D] and [..., S * C], as `RSSM.feat` has them.
Feat = tuple[jax.Array, jax.Array]
Noise = Mapping[str, jax.Array]


class ScalarHead(nnx.Module):
  """A scalar over symexp bins: the reward or the value."""

  def __init__(
    self, inputs: int, config: Any, *, dtype: jnp.dtype, rngs: nnx.Rngs
  ):
    kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    self.mlp = layers.MLP(inputs, config.units, config.layers, **kw)
    self.out = layers.Linear(
      config.units, config.bins, outscale=config.outscale, axes=AXES, **kw
    )

  def __call__(self, feat: Feat) -> TwoHot:
    """Distribution of a scalar [...]."""
    return TwoHot(logits=self.out(self.mlp.of_state(*feat)))


class BinaryHead(nnx.Module):
  """The probability that the episode goes on."""

  def __init__(
    self, inputs: int, config: Any, *, dtype: jnp.dtype, rngs: nnx.Rngs
  ):
    kw: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
    self.mlp = layers.MLP(inputs, config.units, config.layers, **kw)
    self.out = layers.Linear(
      config.units, 1, outscale=config.outscale, axes=AXES, **kw
    )

  def __call__(self, feat: Feat) -> Bernoulli:
    """Distribution of a binary [...]."""
    logit = self.out(self.mlp.of_state(*feat))[..., 0]
    return Bernoulli(logit=logit.astype(jnp.float32))


class PolicyHead(nnx.Module):
  """A distribution per action key."""

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
    for key, space in self.spaces.items():
      for part in ['logits'] if space.classes else ['mean', 'std']:
        out = layers.Linear(config.units, space.size, **kw)
        setattr(self, f'{spaces.parameter_name(key)}_{part}', out)

  def __call__(
    self, feat: Feat, known: Sequence[jax.Array] | None = None
  ) -> 'Policy':
    """Distributions of the action [...] per key.

    Args:
      feat: What the head sees.
      known: `Policy.linear`, if it has been computed before.
    """
    x, linear = self.mlp.recalling(*feat, known=known)
    dists: dict[str, Categorical | BoundedNormal] = {}
    for key, space in self.spaces.items():
      prefix = spaces.parameter_name(key)
      batch = x.shape[:-1]
      if space.classes:
        logits = getattr(self, f'{prefix}_logits')(x)
        logits = logits.reshape(*batch, *space.shape, space.classes)
        dists[key] = Categorical.create(logits, self.unimix)
      else:
        mean = getattr(self, f'{prefix}_mean')(x).reshape(*batch, *space.shape)
        std = getattr(self, f'{prefix}_std')(x).reshape(*batch, *space.shape)
        dists[key] = BoundedNormal.create(mean, std, *self.bounds)
    return Policy(dists, self.spaces, linear)

  def noise(
    self, key: jax.Array | None, batch: tuple[int, ...]
  ) -> Noise | None:
    """What `Policy.choose` takes for actions [*batch, ...] per key.

    Args:
      key: PRNG key; None gives None, which stands for modes.
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


class Policy:
  """Independent action distributions, one per key.

  Attributes:
    dists: Per key.
    spaces: Per key.
    linear: Results [..., units] of the linear layers before, without norms.
  """

  def __init__(
    self,
    dists: Mapping[str, Categorical | BoundedNormal],
    act_space: Mapping[str, spaces.Space],
    linear: Sequence[jax.Array],
  ):
    self.dists = dists
    self.spaces = act_space
    self.linear = linear

  def choose(self, noise: Noise | None) -> dict[str, jax.Array]:
    """An action per key, [..., *space.shape].

    Args:
      noise: From `PolicyHead.noise`; None for the mode.
    """
    return {
      name: dist.sample(None if noise is None else noise[name])
      for name, dist in self.dists.items()
    }

  def log_prob(self, action: Mapping[str, jax.Array]) -> jax.Array:
    """float32 [...], summed over keys and elements."""
    parts = [
      self._reduce(k, dist.log_prob(action[k]))
      for k, dist in self.dists.items()
    ]
    return sum(parts[1:], start=parts[0])

  def entropy(self) -> dict[str, jax.Array]:
    """float32 [...] per key, summed over elements, in nats."""
    return {k: self._reduce(k, d.entropy()) for k, d in self.dists.items()}

  def _reduce(self, key: str, x: jax.Array) -> jax.Array:
    rank = len(self.spaces[key].shape)
    return x.sum(tuple(range(x.ndim - rank, x.ndim)))
