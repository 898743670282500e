"""The actor loop: observe, act, store."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dreamer_tpu.actor.episodes import EpisodeStats
from dreamer_tpu.envs import VectorEnv
from dreamer_tpu.envs.observations import LOG

Arrays = dict[str, np.ndarray]
# Maps observations [N, ...] to actions and latents [N, ...].
PolicyFn = Callable[[Mapping[str, np.ndarray]], tuple[Arrays, Arrays]]


class Actor:
  """Steps N environments with a policy, one step at a time.

  Args:
    env: N environments. The first step resets them.
    policy: Maps observations to actions and latents.

  Attributes:
    compiles: Name of a program that takes long to compile, or ''.
  """

  compiles = ''

  def __init__(self, env: VectorEnv, policy: PolicyFn):
    self._env = env
    self._policy = policy
    self._episodes = EpisodeStats(env.num_envs)
    self._obs: Arrays | None = None

  def step(self, store: Callable[[Arrays], None]) -> list[dict[str, Any]]:
    """Steps every environment once.

    Args:
      store: Receives the transition, for example `Replay.add`, unless the
        environments fail.

    Returns:
      The episodes that ended in this step, see `EpisodeStats.update`.
    """
    if self._obs is None:
      self._obs = self._env.reset()
      self._episodes.update(self._obs)
    action, latents = self._policy(self._obs)
    following = self._env.step(action)
    store(transition(self._obs, action, latents))
    self._obs = following
    return self._episodes.update(self._obs)


def transition(
  obs: Mapping[str, Any], action: Mapping[str, Any], latents: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns one step of experience: observation, action and latents.

  Args:
    obs: Observations; `log/...` keys are dropped.
    action: The actions taken on them.
    latents: The latents of the policy after these observations.
  """
  seen = {k: v for k, v in obs.items() if not k.startswith(LOG)}
  return {**seen, **action, **latents}
