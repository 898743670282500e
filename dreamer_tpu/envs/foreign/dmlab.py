"""DeepMind Lab with the calls of Gymnasium.

Runs in any Python from 3.8 with NumPy and deepmind_lab, without the rest of the
project.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_IMAGE, _TEXT, _LEFT = 'RGB_INTERLEAVED', 'INSTR', 'FRAMES_REMAINING_AT_60'


def make(**arguments: Any) -> Lab:
  """Makes a level; see `Lab`."""
  return Lab(**arguments)


class Lab:
  """A level that repeats actions.

  An episode that ends as its time is over is truncated, others are terminated.

  Args:
    level: Path of the level.
    config: Settings of the level; values are texts.
    repeat: Frames per action.
    text: Whether to observe the instruction.
  """

  def __init__(self, level: str, config: dict, repeat: int, text: bool):
    import deepmind_lab

    names = [_IMAGE, _LEFT] + ([_TEXT] if text else [])
    self._lab = deepmind_lab.Lab(level, names, config=config)
    self._repeat = repeat
    self._text = text
    shape = [int(config['height']), int(config['width']), 3]
    image = {'kind': 'Box', 'low': 0, 'high': 255, 'shape': shape}
    spaces = [['image', {**image, 'dtype': 'uint8'}]]
    if text:
      spaces.append(['instruction', {'kind': 'Text'}])
    self.observation_space = {'kind': 'Dict', 'spaces': spaces}
    bounds = self._lab.action_spec()
    self.action_space = {
      'kind': 'Box',
      'low': [each['min'] for each in bounds],
      'high': [each['max'] for each in bounds],
      'shape': [len(bounds)],
      'dtype': 'int32',
    }

  def reset(self, seed: int | None = None) -> tuple[Any, dict]:
    """Starts an episode."""
    self._lab.reset(seed=seed)
    return self._observe(), {}

  def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
    """Repeats an action."""
    action = np.asarray(action, np.intc)
    reward = self._lab.step(action, num_steps=self._repeat)
    if self._lab.is_running():
      return self._observe(), reward, False, False, {}
    # There is no observation of the end.
    cut = self._left <= self._repeat
    return self._last, reward, not cut, cut, {}

  def close(self) -> None:
    """Frees the engine."""
    self._lab.close()

  def _observe(self) -> dict[str, Any]:
    given = self._lab.observations()
    self._left = float(given[_LEFT][0])
    self._last = {'image': given[_IMAGE]}
    if self._text:
      self._last['instruction'] = given[_TEXT]
    return self._last
