"""Publishing of the learner's weights to the policy that acts."""

from dreamer_tpu.learner.acting import PolicyStep
from dreamer_tpu.learner.learner import Learner


class Publisher:
  """Copies the learner's weights to a policy at intervals.

  With several hosts, all must call it in the same order.

  Args:
    learner: Initialized learner.
    policy: Policy; the first call makes the first copy.
    every: Minimum number of updates between two copies.
  """

  def __init__(self, learner: Learner, policy: PolicyStep, every: int):
    self._learner = learner
    self._policy = policy
    self._every = every
    self._published: int | None = None

  def __call__(self, update: int, *, now: bool = False) -> None:
    """Publishes if the interval has passed.

    Args:
      update: Number of updates so far.
      now: Publishes any newer weights, whatever the interval.
    """
    interval = 1 if now else self._every
    if self._published is None or update - self._published >= interval:
      self._policy.params = self._learner.publish(self._policy.device)
      self._policy.version = self._published = update
