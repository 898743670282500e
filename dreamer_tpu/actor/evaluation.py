"""Unbiased evaluation of a fixed policy over whole episodes."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dreamer_tpu.actor.actor import Arrays, PolicyFn, transition
from dreamer_tpu.actor.episodes import Averages, EpisodeStats
from dreamer_tpu.envs import VectorEnv
from dreamer_tpu.errors import Interrupted

_MAX_FRAMES = 1000  # Of a video; episodes may be longer.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """Result of `evaluate`.

  Attributes:
    episodes: Episodes as `EpisodeStats.update` returns them, ordered by
      environment and then by time.
    unfinished: Episodes that did not end in time, as they were then, at most
      one for each environment.
    videos: First episode of the recorded environments as 'KEY/ENV' uint8
      [T, H, W, C], at most 1,000 steps: observed images, or 'render/ENV' if
      there are none.
    complete: False if it was ended early.
  """

  episodes: list[dict[str, Any]]
  unfinished: list[dict[str, Any]]
  videos: Arrays
  complete: bool

  def metrics(self) -> dict[str, float]:
    """Returns `summarize` of the episodes."""
    return summarize(self.episodes, self.unfinished)


def evaluate(
  env: VectorEnv,
  policy: PolicyFn,
  episodes: int,
  *,
  store: Callable[[Arrays], None] = lambda transition: None,
  finished: Callable[[dict[str, Any]], None] = lambda episode: None,
  stepped: Callable[[int, int], None] = lambda steps, ended: None,
  stop: Callable[[], bool] = lambda: False,
  length: int = 0,
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
    stepped: Receives the steps of each environment and the ended episodes so
      far, in each step.
    stop: Returns True to end the evaluation early; called before each step.
    length: Maximum number of steps of an episode; 0 for no limit. An
      environment with an episode that is longer plays no more.
    record: Number of environments to record a video of.
  """
  share = np.full(env.num_envs, episodes // env.num_envs)
  share[: episodes % env.num_envs] += 1
  stats, recorder = EpisodeStats(env.num_envs), _Recorder(env, record)
  played: list[dict[str, Any]] = []
  unfinished: list[dict[str, Any]] = []
  # A stop request interrupts environments that do not answer.
  with contextlib.suppress(Interrupted):
    obs = env.reset()
    for steps in itertools.count():
      recorder.add(obs)
      playing = share > 0
      for episode in stats.update({**obs, 'is_last': obs['is_last'] & playing}):
        share[episode['env']] -= 1
        played.append(episode)
        finished(episode)
      late = (share > 0) & (stats.length >= (length or np.inf))
      for i in np.flatnonzero(late & ~obs['is_last']).tolist():
        share[i] = 0
        unfinished.append(stats.episode(i))
      stepped(steps, len(played))
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
    unfinished=unfinished,
    videos=recorder.videos(),
    complete=not share.any(),
  )


def summarize(
  episodes: list[dict[str, Any]], unfinished: Sequence[dict[str, Any]] = ()
) -> dict[str, float]:
  """Returns statistics of the episodes of one or several hosts.

  Args:
    episodes: Episodes that have ended.
    unfinished: Episodes that did not end in time.

  Returns:
    The means of the 'stats' of episodes that have ended, 'episode/count',
    'episode/score_median' and, for two or more episodes, the standard error of
    the mean score as 'episode/score_sem'. Episodes that did not end in time are
    counted apart, as 'unfinished/count' with their mean 'unfinished/score' so
    far.
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
  if unfinished:
    result['unfinished/count'] = float(len(unfinished))
    result['unfinished/score'] = float(
      np.mean([x['score'] for x in unfinished])
    )
  return result


class _Recorder:
  """Collects the images of the first episode of the first environments.

  Where no image is observed, it collects screenshots of the environments.
  """

  def __init__(self, env: VectorEnv, num_envs: int):
    self._env = env
    self._frames: list[dict[str, list[np.ndarray]]] = [
      {} for _ in range(num_envs)
    ]
    self._recording = np.ones(num_envs, bool)

  def add(self, obs: Mapping[str, np.ndarray]) -> None:
    numbers = np.flatnonzero(self._recording).tolist()
    images = {
      key: {i: value[i] for i in numbers}
      for key, value in obs.items()
      if value.ndim == 4 and value.dtype == 'uint8'
    }
    if not images:
      images = {'render': self._env.screenshots(numbers)}
    for key, seen in images.items():
      for i, image in seen.items():
        frames = self._frames[i].setdefault(key, [])
        # The size of a screenshot may change.
        if not frames or image.shape == frames[0].shape:
          frames.append(image)
        self._recording[i] &= len(frames) < _MAX_FRAMES
    self._recording &= ~obs['is_last'][: len(self._recording)]

  def videos(self) -> Arrays:
    return {
      f'{key}/{i}': np.stack(frames)
      for i, videos in enumerate(self._frames)
      for key, frames in videos.items()
    }
