"""Protocol of environments that are JAX functions."""

from typing import Any, Protocol

import gymnasium
import jax


class FunctionalEnv(Protocol):
  """One environment, as pure functions of its state.

  Its methods are traced, for one environment; the caller adds the batch axis
  with `jax.vmap`. States are pytrees of arrays whose shapes never change. An
  optional method `render(state)`, which is not traced, returns a screenshot,
  uint8 [H, W, 3].

  Attributes:
    observation_space: Space of the observations. Dict keys `log/NAME` are
      scalars that are logged and not observed.
    action_space: Space of the actions.
  """

  observation_space: gymnasium.Space
  action_space: gymnasium.Space

  def reset(self, key: jax.Array) -> tuple[Any, Any]:
    """Starts an episode.

    Args:
      key: Source of randomness, uint32 [2].

    Returns:
      State and first observation.
    """
    ...

  def step(
    self, state: Any, action: Any, key: jax.Array
  ) -> tuple[Any, Any, jax.Array, jax.Array, jax.Array]:
    """Takes a step; never starts a new episode.

    Args:
      state: State before the step.
      action: Value of `action_space`.
      key: Source of randomness, uint32 [2].

    Returns:
      State, observation, reward (scalar), and the flags `terminated` and
      `truncated` (scalars), as those of Gymnasium. The observation is that of
      the state after the step, also at the end of an episode.
    """
    ...
