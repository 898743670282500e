"""The actor loop: look, act, store."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dreamer_tpu.actor.episodes import LOG, EpisodeStats
from dreamer_tpu.envs import VectorEnv

Arrays = dict[str, np.ndarray]
Policy = Callable[[Mapping[str, np.ndarray]], tuple[Arrays, Arrays]]


class Actor:
  """Steps N environments with a policy and hands on every transition.

  A transition is what was seen, the action taken on it, and the latents that
  the policy had after seeing it. The environments are reset when this is made.

  Args:
    env: N environments.
    policy: From observations [N, ...] to actions and latents [N, ...].
    store: Takes each transition, for example `Replay.add`.
  """

  def __init__(
    self,
    env: VectorEnv,
    policy: Policy,
    store: Callable[[Arrays], None],
  ):
    self._env = env
    self._policy = policy
    self._store = store
    self._episodes = EpisodeStats(env.num_envs)
    self._obs = env.reset()
    self._episodes.update(self._obs)

  def step(self) -> list[dict[str, Any]]:
    """One step of every environment.

    Returns:
      The episodes that ended with it, as `EpisodeStats.update` returns them.
    """
    action, latents = self._policy(self._obs)
    seen = {k: v for k, v in self._obs.items() if not k.startswith(LOG)}
    self._store({**seen, **action, **latents})
    self._obs = self._env.step(action)
    return self._episodes.update(self._obs)
