"""Unbiased evaluation of a fixed policy over whole episodes."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dreamer_tpu.actor.actor import Arrays, PolicyFn, transition
from dreamer_tpu.actor.episodes import Averages, EpisodeStats
from dreamer_tpu.envs import VectorEnv

_MAX_FRAMES = 1000  # Of a video; episodes may be longer.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """Result of `evaluate`.

  Attributes:
    episodes: Episodes as `EpisodeStats.update` returns them, ordered by
      environment and then by time.
    videos: First episode of the recorded environments as 'KEY/ENV' uint8
      [T, H, W, C], at most 1,000 steps.
    complete: False if `stop` ended it early.
  """

  episodes: list[dict[str, Any]]
  videos: Arrays
  complete: bool

  def metrics(self) -> dict[str, float]:
    """Returns `summarize` of the episodes."""
    return summarize(self.episodes)


def evaluate(
  env: VectorEnv,
  policy: PolicyFn,
  episodes: int,
  *,
  store: Callable[[Arrays], None] = lambda transition: None,
  finished: Callable[[dict[str, Any]], None] = lambda episode: None,
  stop: Callable[[], bool] = lambda: False,
  record: int = 0,
) -> Evaluation:
  """Resets the environments and plays a number of episodes to their end.

  The number of episodes per environment is fixed in advance. Counting the
  first episodes to end instead would favor short ones.

  Args:
    env: N environments.
    policy: Maps observations to actions and latents.
    episodes: Number of episodes. If N does not divide it, the first
      environments play one more than the others.
    store: Receives every transition, also of environments that are done.
    finished: Receives every counted episode when it ends.
    stop: Returns True to end the evaluation early; called before each step.
    record: Number of environments to record a video of.
  """
  share = np.full(env.num_envs, episodes // env.num_envs)
  share[: episodes % env.num_envs] += 1
  stats, recorder = EpisodeStats(env.num_envs), _Recorder(record)
  played: list[dict[str, Any]] = []
  obs = env.reset()
  while True:
    recorder.add(obs)
    playing = share > 0
    for episode in stats.update({**obs, 'is_last': obs['is_last'] & playing}):
      share[episode['env']] -= 1
      played.append(episode)
      finished(episode)
    if stop():
      break
    action, latents = policy(obs)
    store(transition(obs, action, latents))
    # Checked after storing, so that the last steps are stored as well.
    if not share.any():
      break
    obs = env.step(action)
  return Evaluation(
    episodes=sorted(played, key=lambda episode: episode['env']),
    videos=recorder.videos(),
    complete=not share.any(),
  )


def summarize(episodes: list[dict[str, Any]]) -> dict[str, float]:
  """Returns statistics of the episodes of one or several hosts.

  Returns:
    The means of their 'stats', 'episode/count', 'episode/score_median' and,
    for two or more episodes, the standard error of the mean score as
    'episode/score_sem'.
  """
  averages = Averages()
  for episode in episodes:
    averages.add(episode['stats'])
  scores = [episode['score'] for episode in episodes]
  result = {**averages.result(), 'episode/count': float(len(scores))}
  if scores:
    result['episode/score_median'] = float(np.median(scores))
  if len(scores) > 1:
    deviation = float(np.std(scores, ddof=1))
    result['episode/score_sem'] = deviation / len(scores) ** 0.5
  return result


class _Recorder:
  """Collects the images of the first episode of the first environments."""

  def __init__(self, num_envs: int):
    self._frames: list[dict[str, list[np.ndarray]]] = [
      {} for _ in range(num_envs)
    ]
    self._recording = np.ones(num_envs, bool)

  def add(self, obs: Mapping[str, np.ndarray]) -> None:
    images = {
      k: v for k, v in obs.items() if v.ndim == 4 and v.dtype == 'uint8'
    }
    for i in np.flatnonzero(self._recording):
      for key, image in images.items():
        self._frames[i].setdefault(key, []).append(image[i])
        self._recording[i] &= len(self._frames[i][key]) < _MAX_FRAMES
      self._recording[i] &= not obs['is_last'][i]

  def videos(self) -> Arrays:
    return {
      f'{key}/{i}': np.stack(frames)
      for i, videos in enumerate(self._frames)
      for key, frames in videos.items()
    }
