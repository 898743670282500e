"""The actor loop: look, act, store."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dreamer_tpu.actor.episodes import LOG, EpisodeStats
from dreamer_tpu.envs import VectorEnv

Arrays = dict[str, np.ndarray]
Policy = Callable[[Mapping[str, np.ndarray]], tuple[Arrays, Arrays]]


class Actor:
  """Steps N environments with a policy.

  The first step resets the environments.

  Args:
    env: N environments.
    policy: Maps observations [N, ...] to actions and latents [N, ...].
  """

  def __init__(self, env: VectorEnv, policy: Policy):
    self._env = env
    self._policy = policy
    self._episodes = EpisodeStats(env.num_envs)
    self._obs: Arrays | None = None

  def step(self, store: Callable[[Arrays], None]) -> list[dict[str, Any]]:
    """Steps every environment once.

    Args:
      store: Receives the transition: observations, the actions taken on them
        and the latents of the policy, for example `Replay.add`.

    Returns:
      The episodes that ended in this step, as `EpisodeStats.update` does.
    """
    if self._obs is None:
      self._obs = self._env.reset()
      self._episodes.update(self._obs)
    action, latents = self._policy(self._obs)
    seen = {k: v for k, v in self._obs.items() if not k.startswith(LOG)}
    store({**seen, **action, **latents})
    self._obs = self._env.step(action)
    return self._episodes.update(self._obs)
