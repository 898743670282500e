"""Whole episodes with a fixed policy, counted without a bias."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dreamer_tpu.actor.actor import Arrays, Policy
from dreamer_tpu.actor.episodes import LOG, Averages, EpisodeStats
from dreamer_tpu.envs import VectorEnv

# Frames of a video; episodes may be much longer.
_FRAMES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """What `evaluate` has seen.

  Attributes:
    episodes: As `EpisodeStats.update` returns them; by environment, in the
      order of time.
    videos: The first episode of the recorded environments as 'KEY/ENV' uint8
      [T, H, W, C], at most 1,000 steps.
    complete: False if `stop` has ended it early.
  """

  episodes: list[dict[str, Any]]
  videos: Arrays
  complete: bool

  def metrics(self) -> dict[str, float]:
    """As `summarize` returns them."""
    return summarize(self.episodes)


def evaluate(
  env: VectorEnv,
  policy: Policy,
  episodes: int,
  *,
  store: Callable[[Arrays], None] = lambda transition: None,
  finished: Callable[[dict[str, Any]], None] = lambda episode: None,
  stop: Callable[[], bool] = lambda: False,
  record: int = 0,
) -> Evaluation:
  """Plays a number of episodes to their end.

  Every environment plays its share, decided beforehand: these are the first
  episodes that start, not the first that end, among which short ones would be
  too many. The environments are reset first.

  Args:
    env: N environments.
    policy: From observations [N, ...] to actions and latents [N, ...].
    episodes: How many; environment i plays one more than the others if they
      do not divide by N and it is one of the first.
    store: Takes every transition, with those of environments that have done
      their share.
    finished: Takes every episode that counts, when it ends.
    stop: Asked before each step whether to give up.
    record: Number of environments of whose first episode videos are made.
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
    seen = {k: v for k, v in obs.items() if not k.startswith(LOG)}
    store({**seen, **action, **latents})
    # Only now: the last steps, too, belong to what is stored.
    if not share.any():
      break
    obs = env.step(action)
  return Evaluation(
    episodes=sorted(played, key=lambda episode: episode['env']),
    videos=recorder.videos(),
    complete=not share.any(),
  )


def summarize(episodes: list[dict[str, Any]]) -> dict[str, float]:
  """Statistics of episodes, of one evaluation or of several hosts'.

  Returns:
    The means of their 'stats', 'episode/count', 'episode/score_median' and,
    from two episodes on, the standard error of the mean score as
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
  """Keeps the images of the first episode of the first environments."""

  def __init__(self, num_envs: int):
    self._frames: list[dict[str, list[np.ndarray]]] = [
      {} for _ in range(num_envs)
    ]
    self._open = np.ones(num_envs, bool)

  def add(self, obs: Mapping[str, np.ndarray]) -> None:
    images = {
      k: v for k, v in obs.items() if v.ndim == 4 and v.dtype == 'uint8'
    }
    for i in np.flatnonzero(self._open):
      for key, image in images.items():
        self._frames[i].setdefault(key, []).append(image[i])
        self._open[i] &= len(self._frames[i][key]) < _FRAMES
      self._open[i] &= not obs['is_last'][i]

  def videos(self) -> Arrays:
    return {
      f'{key}/{i}': np.stack(frames)
      for i, videos in enumerate(self._frames)
      for key, frames in videos.items()
    }
