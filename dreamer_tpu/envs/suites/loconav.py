"""Navigation through mazes with a body that must learn to walk first.

Tasks are named loconav_BODY_ARENA, such as loconav_ant_maze_m, optionally with
the control frequency after it, as in loconav_ant_maze_m_20hz (50 by default).
The reward is 1 in the step that reaches the goal and in each one after it, in
60 seconds. Episodes end by this limit. `log/coverage` counts the squares of one
meter that the body was in.
"""

import inspect
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from dreamer_tpu.envs import dm_control, registry
from dreamer_tpu.envs.dm_control import Control

BODIES = ('ant', 'quadruped', 'humanoid')

FREQUENCY = re.compile(r'_([1-9]\d*)hz$')
HZ = 50

# Digits and stars are walls, G is the goal, P the start.
ARENAS = {
  'maze_s': """
          66666
          6   6
          6 G 6
          6   6
          5   4
          5   4
    1111555   4
    1         3
    1 P       3
    1         3
    11112223333
  """,
  'maze_m': """
    66668887777
    6         7
    6 G       7
    6         7
    6665555   4
          5   4
    1111555   4
    1         3
    1 P       3
    1         3
    11112223333
  """,
  'maze_l': """
    88887776666
    8         6
    8 G       6
    8         6555
    8888777      5
          7      5
    11111 7      5
    1   1 7999   5
    1   1    9   5
    1   111999   5
    2            4
    2    P       4
    2            4
    22223333334444
  """,
  'maze_xl': """
    99999998888 44444
    9         8 4   4
    9       G 8 4   4
    9         8 4   4
    6   7778888 5   3
    6   7       5   3
    6   777555555   3
    5               3
    5               3
    5               3
    5555444   666   3
          4   6 6   3
    1111444   6 6   3
    1         2 1   1
    1 P       2 1   1
    1         2 1   1
    11111112222 11111
  """,
  'maze_xxl': """
    7777***666***9999
    7               9
    7             G 9
    7               9
    *   555******9999
    *   5
    *   555******3333
    8               3
    8               3
    8               3
    8888******444   *
                4   *
    1111******444   *
    1               2
    1 P             2
    1               2
    1111***666***2222
  """,
}

EMPTY = 17  # Width and length of the arena without walls.

# Colors of the walls.
COLORS = {
  '1': (31, 119, 180),
  '2': (255, 127, 14),
  '3': (44, 160, 44),
  '4': (214, 39, 40),
  '5': (148, 103, 189),
  '6': (140, 86, 75),
  '7': (227, 119, 194),
  '8': (127, 127, 127),
  '9': (188, 189, 34),
  '*': (204, 204, 204),
}


class LocoNav(Control):
  """One body in one arena.

  Args:
    name: BODY_ARENA, optionally with _Nhz after it.
    config: As for `Control`; camera -1 is that of the body.
    render_mode: 'rgb_array' for `render`, which looks from above.
  """

  def __init__(self, name: str, config: Any, *, render_mode: str | None = None):
    wanted = render_mode is not None
    dm_control.load('dm_control.composer', config.image, wanted=wanted)
    from dreamer_tpu.envs import locomotion

    frequency = FREQUENCY.search(name)
    hz = int(frequency[1]) if frequency else HZ
    body, _, arena = FREQUENCY.sub('', name).partition('_')
    camera = config.image and config.camera < 0
    self._walker, env = locomotion.make(body, layout(arena), COLORS, hz, camera)
    super().__init__(env, config, render_mode=render_mode)
    self._visited: set[tuple[int, ...]] = set()

  def reset(self, *, seed=None, options=None):
    """Starts an episode."""
    obs, _ = super().reset(seed=seed, options=options)
    self._visited.clear()
    return obs, self._coverage()

  def step(self, action):
    """Takes `repeat` steps."""
    *result, _ = super().step(action)
    return (*result, self._coverage())

  def _coverage(self) -> dict[str, Any]:
    position = self._walker.get_pose(self.dm.physics)[0][:2]
    self._visited.add(tuple(np.round(position).astype(int).tolist()))
    return {'log/coverage': len(self._visited)}


def layout(arena: str) -> str:
  """Returns the lines of an arena, all of the same length."""
  if arena == 'empty':
    return (' ' * EMPTY + '\n') * EMPTY
  lines = inspect.cleandoc(ARENAS[arena]).split('\n')
  width = max(map(len, lines))
  return ''.join(f'{line:{width}}\n' for line in lines)


def names(name: str, config: Any) -> Iterable[str]:
  """Returns all bodies in all arenas, with the frequency of a name."""
  del config
  frequency = FREQUENCY.search(name)
  suffix = frequency[0] if frequency else ''
  arenas = *ARENAS, 'empty'
  return [f'{body}_{arena}{suffix}' for body in BODIES for arena in arenas]


SUITE = registry.Suite(make=LocoNav, names=names, package='dm_control')
