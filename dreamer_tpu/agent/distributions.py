"""Distributions of the world model, the actor and the critic.

All math is float32. Noise is drawn first, for many steps at once, and passed
to `sample`.
"""

import jax
import jax.numpy as jnp
import optax
from flax import struct

from dreamer_tpu.agent.ops import twohot

f32 = jnp.float32


def symlog(x: jax.Array) -> jax.Array:
  """Returns sign(x) log(1 + |x|) (Eq. 9 of the paper)."""
  return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: jax.Array) -> jax.Array:
  """Returns sign(x) (exp(|x|) - 1), the inverse of `symlog` (Eq. 9)."""
  return jnp.sign(x) * jnp.expm1(jnp.abs(x))


@struct.dataclass
class Categorical:
  """Independent categoricals over the last axis; build with `create`.

  Attributes:
    logp: float32 [..., classes] log-probabilities.
    probs: float32 [..., classes] probabilities, stored so that sampling does
      not need `exp(logp)`.
  """

  logp: jax.Array
  probs: jax.Array

  @classmethod
  def create(cls, logits: jax.Array, unimix: float = 0.0) -> 'Categorical':
    """Mixes `unimix` of the uniform into logits [..., classes]."""
    if not unimix:
      return cls.from_logp(jax.nn.log_softmax(logits.astype(f32)))
    probs = jax.nn.softmax(logits.astype(f32))
    probs = probs * (1 - unimix) + unimix / logits.shape[-1]
    return cls(logp=jnp.log(probs), probs=probs)

  @classmethod
  def from_logp(cls, logp: jax.Array) -> 'Categorical':
    """Takes normalized log-probabilities [..., classes]."""
    return cls(logp=logp, probs=jnp.exp(logp))

  @staticmethod
  def noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws float32 noise to sample classes of a shape."""
    return jax.random.uniform(key, shape, f32)

  def sample(self, noise: jax.Array | None) -> jax.Array:
    """Samples classes by inverting the cumulative distribution.

    This needs one random number where the Gumbel trick needs one per class.

    Args:
      noise: Uniform in [0, 1), [...], see `noise`; None returns the mode.

    Returns:
      int32 [...].
    """
    if noise is None:
      return self.mode()
    below = jnp.cumsum(self.probs, -1) <= noise[..., None]
    last = self.logp.shape[-1] - 1  # Rounding may leave the sum below 1.
    return jnp.minimum(below.sum(-1, dtype=jnp.int32), last)

  def mode(self) -> jax.Array:
    """Returns the most likely classes, int32 [...]."""
    return jnp.argmax(self.logp, -1).astype(jnp.int32)

  def straight_through(self, index: jax.Array) -> jax.Array:
    """Returns one-hot samples with the gradient of the probabilities.

    Args:
      index: int32 [...] classes, from `sample`.

    Returns:
      float32 [..., classes].
    """
    hard = jax.nn.one_hot(index, self.logp.shape[-1], dtype=f32)
    return hard + (self.probs - jax.lax.stop_gradient(self.probs))

  def log_prob(self, event: jax.Array) -> jax.Array:
    """Returns float32 [...] log-probabilities of int classes [...]."""
    event = event.astype(jnp.int32)[..., None]
    return jnp.take_along_axis(self.logp, event, -1)[..., 0]

  def entropy(self) -> jax.Array:
    """Returns float32 [...] in nats."""
    return -jnp.sum(self.probs * self.logp, -1)

  def kl(self, other: 'Categorical') -> jax.Array:
    """Returns float32 [...] KL(self || other) in nats."""
    return jnp.sum(self.probs * (self.logp - other.logp), -1)


@struct.dataclass
class BoundedNormal:
  """Independent normals with mean in (-1, 1) and bounded deviation.

  Attributes:
    mean: float32 [...].
    std: float32 [...].
  """

  mean: jax.Array
  std: jax.Array

  @classmethod
  def create(
    cls, mean: jax.Array, std: jax.Array, low: float, high: float
  ) -> 'BoundedNormal':
    """Bounds two network outputs; the deviation is in (low, high)."""
    std = (high - low) * jax.nn.sigmoid(std.astype(f32) + 2.0) + low
    return cls(mean=jnp.tanh(mean.astype(f32)), std=std)

  @staticmethod
  def noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws float32 noise to sample values of a shape."""
    return jax.random.normal(key, shape, f32)

  def sample(self, noise: jax.Array | None) -> jax.Array:
    """Returns float32 [...] samples, not clipped; the mode if noise is None."""
    return self.mean if noise is None else self.mean + self.std * noise

  def log_prob(self, event: jax.Array) -> jax.Array:
    """Returns the float32 [...] log-density of `event`."""
    return jax.scipy.stats.norm.logpdf(event.astype(f32), self.mean, self.std)

  def entropy(self) -> jax.Array:
    """Returns float32 [...] in nats."""
    return 0.5 * jnp.log(2 * jnp.pi * jnp.e * jnp.square(self.std))


def twohot_bins(count: int) -> jax.Array:
  """Returns symexp-spaced bins, mirrored around exactly 0.

  Args:
    count: Odd number of bins.

  Returns:
    float32 [count].
  """
  half = symexp(jnp.linspace(-20.0, 0.0, (count - 1) // 2 + 1, dtype=f32))
  return jnp.concatenate([half, -half[:-1][::-1]])


@struct.dataclass
class TwoHot:
  """A scalar as a categorical over symexp bins (Eq. 10 of the paper).

  Attributes:
    logits: [..., bins], an odd number of bins, in the compute dtype.
  """

  logits: jax.Array

  def mean(self) -> jax.Array:
    """Returns float32 [...], exactly 0 for uniform logits.

    Adds opposite bins first: their products only cancel within a pair.
    """
    count = self.logits.shape[-1]
    middle = (count - 1) // 2
    probs = jax.nn.softmax(self.logits.astype(f32))
    low, high = probs[..., :middle], probs[..., middle + 1 :]
    positive = twohot_bins(count)[middle + 1 :]
    return jnp.sum((high - low[..., ::-1]) * positive, -1)

  def loss(self, *targets: jax.Array) -> jax.Array:
    """Returns the cross entropy to targets [...], summed over the targets.

    A non-finite target makes the loss and its gradient NaN, so that the update
    is skipped.
    """
    stop = jax.lax.stop_gradient
    bins = twohot_bins(self.logits.shape[-1])
    wide = [stop(x.astype(f32)) for x in targets]
    return twohot.cross_entropy(self.logits, bins, wide)


@struct.dataclass
class Bernoulli:
  """Independent binary variables.

  Attributes:
    logit: float32 [...] of the probability of one.
  """

  logit: jax.Array

  def prob(self) -> jax.Array:
    """Returns the float32 [...] probability of one."""
    return jax.nn.sigmoid(self.logit)

  def loss(self, target: jax.Array) -> jax.Array:
    """Returns the float32 [...] cross entropy to a probability [...]."""
    return optax.sigmoid_binary_cross_entropy(self.logit, target.astype(f32))
