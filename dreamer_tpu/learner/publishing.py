"""How the learner's weights reach the policy that acts."""

from dreamer_tpu.learner.acting import PolicyStep
from dreamer_tpu.learner.learner import Learner


class Publisher:
  """Hands copies of the weights to a policy, every so many updates.

  With several hosts all must call it in the same order.

  Args:
    learner: With its state.
    policy: Gets the first copy with the first call.
    every: Updates between two copies, at least.
  """

  def __init__(self, learner: Learner, policy: PolicyStep, every: int):
    self._learner = learner
    self._policy = policy
    self._every = every
    self._published: int | None = None

  def __call__(self, update: int, *, now: bool = False) -> None:
    """Publishes if it is time.

    Args:
      update: Updates so far.
      now: Whether any newer weights will do.
    """
    least = 1 if now else self._every
    if self._published is None or update - self._published >= least:
      self._policy.params = self._learner.publish(self._policy.device)
      self._published = update

  def staleness(self, update: int) -> int:
    """Updates that the policy does not have yet."""
    return update - (self._published or 0)
