"""Distributions of the world model, the actor and the critic.

All maths is float32. Whoever samples draws noise first, for many steps at once
if there are many, and gives it to `choose`.
"""

import jax
import jax.numpy as jnp
from flax import struct

f32 = jnp.float32


def symlog(x: jax.Array) -> jax.Array:
  """sign(x) log(1 + |x|) (Eq. 9 of the paper)."""
  return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: jax.Array) -> jax.Array:
  """sign(x) (exp(|x|) - 1), the inverse of `symlog` (Eq. 9)."""
  return jnp.sign(x) * jnp.expm1(jnp.abs(x))


@struct.dataclass
class Categorical:
  """Independent categoricals over the last axis; build with `create`.

  Attributes:
    logp: float32 [..., classes] log-probabilities.
    probs: float32 [..., classes] the same as probabilities. Who only samples
      needs no logarithm.
  """

  logp: jax.Array
  probs: jax.Array

  @classmethod
  def create(cls, logits: jax.Array, unimix: float = 0.0) -> 'Categorical':
    """From logits [..., classes], mixed with `unimix` of the uniform."""
    if not unimix:
      return cls.from_logp(jax.nn.log_softmax(logits.astype(f32)))
    probs = jax.nn.softmax(logits.astype(f32))
    probs = probs * (1 - unimix) + unimix / logits.shape[-1]
    return cls(logp=jnp.log(probs), probs=probs)

  @classmethod
  def from_logp(cls, logp: jax.Array) -> 'Categorical':
    """From normalized log-probabilities [..., classes]."""
    return cls(logp=logp, probs=jnp.exp(logp))

  @staticmethod
  def noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What `choose` takes for classes of this shape, float32."""
    return jax.random.uniform(key, shape, f32)

  def choose(self, noise: jax.Array | None) -> jax.Array:
    """int32 [...] classes, by inverting the cumulative distribution.

    That needs one random number where the Gumbel trick needs one per class.

    Args:
      noise: From `noise`, uniform in [0, 1), [...]; None for the mode.
    """
    if noise is None:
      return jnp.argmax(self.logp, -1).astype(jnp.int32)
    below = jnp.cumsum(self.probs, -1) <= noise[..., None]
    last = self.logp.shape[-1] - 1  # rounding may leave the sum below 1
    return jnp.minimum(below.sum(-1, dtype=jnp.int32), last)

  def straight_through(self, index: jax.Array) -> jax.Array:
    """One-hot float32 [..., classes] with the gradient of the probabilities.

    Args:
      index: int32 [...] classes, from `choose`.
    """
    hard = jax.nn.one_hot(index, self.logp.shape[-1], dtype=f32)
    return hard + (self.probs - jax.lax.stop_gradient(self.probs))

  def log_prob(self, event: jax.Array) -> jax.Array:
    """float32 [...] log-probability of int classes [...]."""
    event = event.astype(jnp.int32)[..., None]
    return jnp.take_along_axis(self.logp, event, -1)[..., 0]

  def entropy(self) -> jax.Array:
    """float32 [...] in nats."""
    return -jnp.sum(self.probs * self.logp, -1)

  def kl(self, other: 'Categorical') -> jax.Array:
    """float32 [...] KL(self || other) in nats."""
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
    """From two unbounded network outputs; the deviation is in (low, high)."""
    std = (high - low) * jax.nn.sigmoid(std.astype(f32) + 2.0) + low
    return cls(mean=jnp.tanh(mean.astype(f32)), std=std)

  @staticmethod
  def noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What `choose` takes for values of this shape, float32."""
    return jax.random.normal(key, shape, f32)

  def choose(self, noise: jax.Array | None) -> jax.Array:
    """float32 [...], not clipped, from `noise`; None for the mode."""
    return self.mean if noise is None else self.mean + self.std * noise

  def log_prob(self, event: jax.Array) -> jax.Array:
    """float32 [...] log-density of `event`."""
    return jax.scipy.stats.norm.logpdf(event.astype(f32), self.mean, self.std)

  def entropy(self) -> jax.Array:
    """float32 [...] in nats."""
    return 0.5 * jnp.log(2 * jnp.pi * jnp.e * jnp.square(self.std))


def twohot_bins(count: int) -> jax.Array:
  """float32 [count] symexp-spaced bins, mirrored around exactly 0.

  Args:
    count: Odd number of bins.
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
    """float32 [...], exactly 0 for uniform logits.

    Opposite bins are added first, since their products cancel only when
    they meet.
    """
    count = self.logits.shape[-1]
    middle = (count - 1) // 2
    probs = jax.nn.softmax(self.logits.astype(f32))
    low, high = probs[..., :middle], probs[..., middle + 1 :]
    return jnp.sum(
      (high - low[..., ::-1]) * twohot_bins(count)[middle + 1 :], -1
    )

  def loss(self, *targets: jax.Array) -> jax.Array:
    """float32 [...] cross entropies to scalars [...], summed over these.

    NaN, and its gradient too, where a target is not finite, so that the
    update is skipped.
    """
    stop = jax.lax.stop_gradient
    return _twohot_loss(self.logits, stop([x.astype(f32) for x in targets]))


@jax.custom_vjp
def _twohot_loss(logits: jax.Array, targets: list[jax.Array]) -> jax.Array:
  """Keeps the logits for its gradient, and nothing else of their size."""
  return _twohot_forward(logits, targets)[0]


def _twohot_forward(logits, targets):
  wide = logits.astype(f32)
  total = jax.nn.logsumexp(wide, -1, keepdims=True)
  target = _twohot_targets(targets, logits.shape[-1])
  loss = jnp.sum(target * (total - wide), -1)
  return loss, (logits, targets, total)


def _twohot_backward(residuals, cotangent):
  logits, targets, total = residuals
  probs = jnp.exp(logits.astype(f32) - total)
  target = _twohot_targets(targets, logits.shape[-1])
  grad = cotangent[..., None] * (len(targets) * probs - target)
  return grad.astype(logits.dtype), None


_twohot_loss.defvjp(_twohot_forward, _twohot_backward)


def _twohot_targets(targets: list[jax.Array], count: int) -> jax.Array:
  """Sum of the two-hot targets, [..., bins]; meant to be fused, not stored.

  A bin's weight falls linearly from 1 at the bin to 0 at its neighbours.
  """
  bins = twohot_bins(count)
  inverse = 1 / jnp.diff(bins)
  ends = jnp.full(1, jnp.inf, f32)
  below = jnp.concatenate([-ends, bins[:-1]])
  above = jnp.concatenate([bins[1:], ends])
  from_below = jnp.concatenate([jnp.ones(1, f32), inverse])
  to_above = jnp.concatenate([inverse, jnp.ones(1, f32)])
  total = jnp.zeros((), f32)
  for target in targets:
    target = jnp.where(jnp.isfinite(target), target, jnp.nan)[..., None]
    rising = (target - below) * from_below
    falling = (above - target) * to_above
    total += jnp.clip(jnp.minimum(rising, falling), 0, 1)
  return total


@struct.dataclass
class Bernoulli:
  """Attributes: logit: float32 [...] of the probability of one."""

  logit: jax.Array

  def prob(self) -> jax.Array:
    """float32 [...] probability of one."""
    return jax.nn.sigmoid(self.logit)

  def loss(self, target: jax.Array) -> jax.Array:
    """float32 [...] cross entropy to a probability [...]."""
    target = target.astype(f32)
    return -(
      target * jax.nn.log_sigmoid(self.logit)
      + (1 - target) * jax.nn.log_sigmoid(-self.logit)
    )
