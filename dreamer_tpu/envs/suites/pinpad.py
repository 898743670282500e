"""Pin pad: step on 3 to 8 pads in the right order, seen from above.

The pads are visited from the first to the last, in any number of steps, which
the agent has to find out. The last one in this order gives reward 10; ten steps
later, the player moves to a random place and the order starts anew. The limit
of `length` steps is not terminal. Actions are to stay and to move down, up,
right or left.
"""

import functools
from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Dict, Discrete

from dreamer_tpu.envs import registry
from dreamer_tpu.envs.kinds import image_space

ROWS, COLUMNS = 14, 16
CELL = 4  # Pixels per side.
REWARD, PAUSE = 10.0, 10
MOVES = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))

# Rectangles of each pad in order: first and next row, first and next column.
_TOP_LEFT = ((1, 3, 1, 4), (3, 4, 1, 3))
_TOP_RIGHT = ((1, 3, 12, 15), (3, 4, 13, 15))
_LOW_LEFT = ((10, 11, 1, 3), (11, 13, 1, 4))
_LOW_RIGHT = ((10, 11, 13, 15), (11, 13, 12, 15))
_LEFT, _RIGHT = ((5, 9, 1, 3),), ((5, 9, 13, 15),)
_SEVEN = (
  _TOP_LEFT,
  _LOW_RIGHT,
  _LEFT,
  _TOP_RIGHT,
  _RIGHT,
  _LOW_LEFT,
  ((11, 13, 6, 10),),
)
PADS = {
  'three': (((1, 5, 1, 5),), ((9, 13, 6, 10),), ((1, 5, 11, 15),)),
  'four': (
    ((1, 5, 1, 5),),
    ((9, 13, 11, 15),),
    ((9, 13, 1, 5),),
    ((1, 5, 11, 15),),
  ),
  'five': (
    ((2, 6, 1, 4),),
    ((10, 13, 11, 15),),
    ((8, 12, 1, 4),),
    ((1, 4, 11, 15),),
    ((5, 9, 12, 15),),
  ),
  'six': (
    ((1, 4, 1, 4),),
    ((10, 13, 12, 15),),
    _LEFT,
    ((10, 13, 1, 4),),
    ((1, 4, 12, 15),),
    _RIGHT,
  ),
  'seven': _SEVEN,
  'eight': (*_SEVEN, ((1, 3, 6, 10),)),
}

BLACK, GRAY, WHITE, GREEN = (0,) * 3, (192,) * 3, (255,) * 3, (223, 255, 223)
COLORS = (
  (255, 0, 0),
  (0, 255, 0),
  (0, 0, 255),
  (255, 255, 0),
  (255, 0, 255),
  (0, 255, 255),
  (128, 0, 128),
  (0, 128, 128),
)


class PinPad(gymnasium.Env):
  """A room with pads, as a Gymnasium environment.

  The image shows pads pale, the one under the player bright, the player black,
  the last pads visited below the room, and a green floor after a reward.

  Args:
    name: Number of pads, 'three' to 'eight'.
    config: length in steps, 0 for no limit.
  """

  def __init__(self, name: str, config: Any):
    self._pads = _number_cells(PADS[name])
    self._free = np.argwhere(self._pads >= 0).tolist()
    self._order = list(range(1, len(PADS[name]) + 1))
    self._length = config.length
    self._steps = self._pause = 0
    self._player = (0, 0)
    self._visited: list[int] = []
    self._background = functools.cache(self._draw_room)
    self.observation_space = Dict(
      image=image_space((COLUMNS * CELL, COLUMNS * CELL, 3))
    )
    self.action_space = Discrete(len(MOVES))

  def reset(self, *, seed=None, options=None):
    """Starts an episode."""
    super().reset(seed=seed)
    self._steps = self._pause = 0
    self._start()
    return {'image': self._draw()}, {}

  def step(self, action):
    """Moves the player unless there is a wall."""
    self._steps += 1
    if self._pause:
      self._pause -= 1
      if not self._pause:
        self._start()
    row, column = np.add(self._player, MOVES[action]).tolist()
    pad = int(self._pads[row, column])
    if pad >= 0:
      self._player = (row, column)
    if pad > 0 and self._visited[-1:] != [pad]:
      self._visited = [*self._visited, pad][-len(self._order) :]
    reward = 0.0
    if self._visited == self._order and not self._pause:
      reward, self._pause = REWARD, PAUSE
    over = self._steps == self._length
    return {'image': self._draw()}, reward, False, over, {}

  def _start(self) -> None:
    """Moves the player to a random place and forgets the pads."""
    row, column = self._free[self.np_random.integers(len(self._free))]
    self._player = (row, column)
    self._visited = []

  def _draw(self) -> np.ndarray:
    """Returns the image, uint8 [64, 64, 3]."""
    pad = int(self._pads[self._player])
    image = self._background(pad, self._pause > 0).copy()
    _cell(image, *self._player)[:] = BLACK
    for i, number in enumerate(self._visited):
      _cell(image, ROWS, 2 * i + 1)[:] = COLORS[number - 1]
    return image

  def _draw_room(self, bright: int, green: bool) -> np.ndarray:
    """Returns the image of the room, with one bright pad."""
    pale = np.dot(COLORS, 0.1) + np.dot(WHITE, 0.9)
    if bright:
      pale[bright - 1] = COLORS[bright - 1]
    colors = np.array([GREEN if green else WHITE, *pale, GRAY], np.uint8)
    cells = np.full((COLUMNS, COLUMNS), -1)
    cells[:ROWS] = self._pads
    return colors[cells].repeat(CELL, 0).repeat(CELL, 1)


def _cell(image: np.ndarray, row: int, column: int) -> np.ndarray:
  """Returns a view of a cell's pixels."""
  top, left = row * CELL, column * CELL
  return image[top : top + CELL, left : left + CELL]


def _number_cells(pads: Any) -> np.ndarray:
  """Returns the cells of a room, int [14, 16]: -1 wall, 0 floor, or a pad."""
  cells = np.full((ROWS, COLUMNS), -1)
  cells[1:-1, 1:-1] = 0
  for number, rectangles in enumerate(pads, 1):
    for top, bottom, left, right in rectangles:
      cells[top:bottom, left:right] = number
  return cells


def names(name: str, config: Any) -> Iterable[str]:
  """Returns the six tasks."""
  del name, config
  return PADS


SUITE = registry.Suite(
  make=PinPad, names=names, cheap=lambda name, config: True
)
