"""Vectors of environments that are restarted when they raise, hang or die."""

import dataclasses
import os
import pathlib
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from absl import logging
from gymnasium.vector import AutoresetMode

from dreamer_tpu.envs.checking import complaints
from dreamer_tpu.envs.foreign.client import Raised
from dreamer_tpu.envs.rendering import screenshot
from dreamer_tpu.envs.waiting import Hung
from dreamer_tpu.errors import (
  UserError,
  describe,
  format_frames,
  own_frames,
)

# Key in the infos of a step or reset: bool [N], the environments that were
# restarted in it.
RESTARTED = 'dreamer_tpu/restarted'

_NOT_FINITE = 'an observation or a reward is not finite'

# Calls by environment: 'make', 'check', 'render', 'reset' and 'restart' with a
# seed, and 'step' with an action.
Calls = Mapping[int, tuple[str, Any]]
OBSERVE = ('reset', 'restart', 'step')

_MACHINERY = (f'{pathlib.Path(__file__).parent}{os.sep}',)


@dataclasses.dataclass(frozen=True)
class Failure:
  """Failure of an environment.

  Attributes:
    name: Name of the environment, and the line of its code if it raised.
    text: Reason, in one line.
    frames: Traceback in the environment's own code, at most ten lines.
    mistake: Whether the input is wrong, for all environments alike.
  """

  name: str
  text: str
  frames: str = ''
  mistake: bool = False

  @classmethod
  def of(cls, error: BaseException, name: str) -> 'Failure':
    """Returns the failure for an exception, as caught.

    Args:
      error: The exception.
      name: Name of the environment.
    """
    if isinstance(error, (UserError, Hung)):
      text = ' '.join(str(error).split())
      return cls(name, text, mistake=isinstance(error, UserError))
    if isinstance(error, Raised):
      all_frames = error.frames
    else:
      all_frames = list(traceback.extract_tb(error.__traceback__))
    frames = own_frames(all_frames, skip=_MACHINERY)
    last = (frames or all_frames)[-1]
    return cls(
      f'{name} ({os.path.basename(last.filename)}:{last.lineno})',
      describe(error),
      format_frames(frames),
    )

  def __str__(self) -> str:
    return f'{self.name}: {self.text}'

  def error(self, text: str = '') -> UserError:
    """Returns the error that ends a run, with the traceback as its note.

    Args:
      text: The message; by default the failure.
    """
    error = UserError(text or str(self))
    if self.frames:
      error.add_note(self.frames)
    return error


class Restarts:
  """Counts the restarts of N environments and gives them seeds.

  Args:
    task: Name of the task, for messages.
    num_envs: Number N of environments.
    most: Maximum number of restarts before an episode ends.

  Attributes:
    total: Restarts so far.
  """

  def __init__(self, task: str, num_envs: int, most: int):
    self._task = task
    self._most = most
    self._counts = [0] * num_envs  # Since an episode of it has ended.
    self._seeds = list(map(np.random.SeedSequence, range(num_envs)))
    self.total = 0

  def seed(self, seeds: list[int]) -> None:
    """Sets the seeds of the first episodes, one per environment."""
    self._seeds = list(map(np.random.SeedSequence, seeds))

  def next(self, index: int, failure: Failure, step: int) -> int:
    """Counts and shows a restart.

    Args:
      index: Number of the environment.
      failure: Its failure.
      step: Number of the step.

    Returns:
      Seed for the restart, 31 bits.

    Raises:
      UserError: It has failed too often.
    """
    if self._counts[index] >= self._most:
      limit = f' (env.restarts={self._most} without an episode that ended)'
      raise failure.error(f'{failure}{limit if self._most else ""}')
    self._counts[index] += 1
    self.total += 1
    logging.warning(
      'Task %s, step %d: %s; restart %d of at most %d.',
      self._task,
      step,
      failure,
      self._counts[index],
      self._most,
    )
    return int(self._seeds[index].spawn(1)[0].generate_state(1)[0] >> 1)

  def diverged(self, counts: np.ndarray, step: int) -> None:
    """Counts and shows restarts that functional environments have made.

    Args:
      counts: New restarts of each environment, int or bool [N].
      step: Number of the step.

    Raises:
      UserError: An environment has failed too often.
    """
    for index in np.repeat(np.arange(len(counts)), counts).tolist():
      self.next(index, Failure(f'environment {index}', _NOT_FINITE), step)

  def ended(self, last: np.ndarray) -> None:
    """Counts anew where an episode has ended, bool [N]."""
    for index in np.flatnonzero(last).tolist():
      self._counts[index] = 0


class Environments(gymnasium.vector.VectorEnv):
  """N environments that step together; those that fail are restarted.

  The step or reset in which one fails returns the first observation of its
  next episode, and `RESTARTED` in the infos. Subclasses make the calls.

  Args:
    makers: Functions that make the environments, as `wrappers.Converted`.
    task: Name of the task, for messages.
    restarts: Maximum number of restarts of one of them before an episode ends.

  Raises:
    UserError: An environment could not be made.
  """

  def __init__(
    self,
    makers: list[Callable[[], gymnasium.Env]],
    task: str,
    restarts: int,
  ):
    self.num_envs = len(makers)
    self.metadata = {'autoreset_mode': AutoresetMode.NEXT_STEP}
    self._makers = makers
    self._restarts = Restarts(task, self.num_envs, restarts)
    self._step = 0
    self._ended = np.zeros(self.num_envs, bool)
    self._lost: dict[int, Failure] = {}  # Since the last step.
    made = self._calls(dict.fromkeys(range(self.num_envs), ('make', None)))
    for index, spaces in sorted(made.items()):
      if isinstance(spaces, Failure):
        raise spaces.error(spaces.text if spaces.mistake else '')
      if spaces[:2] != made[0][:2]:
        raise UserError(
          f'environment {index} has other spaces than environment 0: '
          f'{spaces[:2]} instead of {made[0][:2]}'
        )
    self.single_observation_space, self.single_action_space = made[0][:2]
    self.conversion = made[0][2]
    self._layout = {
      key: (space.shape, space.dtype)
      for key, space in made[0][0].spaces.items()
    }

  @property
  def restarts(self) -> int:
    """Restarts so far."""
    return self._restarts.total

  def reset(self, *, seed=None, options=None):
    """Starts new episodes; `seed` is None or a list of seeds."""
    del options
    if seed is not None:
      self._restarts.seed(seed)
    seeds = seed or [None] * self.num_envs
    results, infos = self._results(
      {i: ('reset', seeds[i]) for i in range(self.num_envs)}
    )
    self._ended[:] = False
    return self._observations(results), infos

  def step(self, actions):
    """Steps all environments; an episode that has ended is reset instead."""
    self._step += 1
    results, infos = self._results(
      {
        i: ('reset', None)
        if self._ended[i]
        else ('step', {key: value[i] for key, value in actions.items()})
        for i in range(self.num_envs)
      }
    )
    rewards, terminated, truncated = (
      np.array([result[field] for result in results], dtype)
      for field, dtype in ((1, np.float64), (2, bool), (3, bool))
    )
    self._ended = terminated | truncated
    if self._ended.any():
      self._restarts.ended(self._ended)
    observations = self._observations(results)
    return observations, rewards, terminated, truncated, infos

  def check(self) -> list[str]:
    """Returns `checking.complaints` of environment 0, not to be used after."""
    reply = self._calls({0: ('check', None)})[0]
    return [str(reply)] if isinstance(reply, Failure) else reply

  def screenshots(self, indices: list[int]) -> dict[int, np.ndarray | str]:
    """Returns `rendering.screenshot` of some environments.

    An environment that hangs or dies in it fails in the next step.
    """
    replies = self._calls(dict.fromkeys(indices, ('render', None)))
    self._lost |= {i: x for i, x in replies.items() if isinstance(x, Failure)}
    return {i: x.text if i in self._lost else x for i, x in replies.items()}

  def _results(self, calls: Calls) -> tuple[list[Any], dict[str, Any]]:
    """Makes calls and restarts the environments that fail in them.

    Returns:
      (observation, reward, terminated, truncated, info) of each, and infos.
    """
    lost, self._lost = self._lost, {}
    replies = self._calls({i: x for i, x in calls.items() if i not in lost})
    replies |= lost
    restarted = np.zeros(self.num_envs, bool)
    while failed := sorted(
      i for i, x in replies.items() if isinstance(x, Failure)
    ):
      seeds = {
        i: self._restarts.next(i, replies[i], self._step) for i in failed
      }
      replies |= self._calls({i: ('restart', x) for i, x in seeds.items()})
      restarted[failed] = True
    results = [replies[i] for i in range(self.num_envs)]
    infos: dict[str, Any] = {RESTARTED: restarted} if restarted.any() else {}
    for i, result in enumerate(results):
      if result[4]:
        infos = self._add_info(infos, result[4], i)
    return results, infos

  def _calls(self, calls: Calls) -> dict[int, Any]:
    """Makes calls; returns the result of `answer` or a Failure of each."""
    raise NotImplementedError

  def _observations(self, results: list[Any]) -> dict[str, np.ndarray]:
    """Returns the observations of all environments as new arrays [N, ...]."""
    raise NotImplementedError


def answer(env: Any, command: str, data: Any) -> Any:
  """Calls an environment, see `Calls`.

  Returns:
    (observation space, action space, conversion) for 'make', complaints for
    'check', a screenshot for 'render', otherwise (observation, reward,
    terminated, truncated, info).
  """
  if command == 'make':
    return env.observation_space, env.action_space, env.conversion
  if command == 'check':
    return complaints(env)
  if command == 'render':
    return screenshot(env)
  if command == 'step':
    return env.step(data)
  obs, info = env.reset(seed=data)
  return obs, 0.0, False, False, info
