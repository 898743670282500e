"""Minecraft with the actions, observations and rewards of the paper.

'minecraft_diamond' rewards each of 12 items on the way to a diamond once per
episode, 'minecraft_wood' every log, 'minecraft_climb' height. All also reward
health. Death is terminal, the limit of `length` steps is not.
"""

from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from dreamer_tpu.envs import registry
from dreamer_tpu.envs.foreign.client import Made
from dreamer_tpu.envs.kinds import discrete_space, image_space, vector_space

# Parts of an action by name; the others are as in NOOP.
BASIC: dict[str, dict[str, Any]] = {
  'noop': {},
  'attack': {'attack': 1},
  'turn_up': {'camera': (-15, 0)},
  'turn_down': {'camera': (15, 0)},
  'turn_left': {'camera': (0, -15)},
  'turn_right': {'camera': (0, 15)},
  'forward': {'forward': 1},
  'back': {'back': 1},
  'left': {'left': 1},
  'right': {'right': 1},
  'jump': {'jump': 1, 'forward': 1},
  'place_dirt': {'place': 'dirt'},
}
TOOLS: dict[str, dict[str, Any]] = {
  'craft_planks': {'craft': 'planks'},
  'craft_stick': {'craft': 'stick'},
  'craft_crafting_table': {'craft': 'crafting_table'},
  'place_crafting_table': {'place': 'crafting_table'},
  'craft_wooden_pickaxe': {'nearbyCraft': 'wooden_pickaxe'},
  'craft_stone_pickaxe': {'nearbyCraft': 'stone_pickaxe'},
  'craft_iron_pickaxe': {'nearbyCraft': 'iron_pickaxe'},
  'equip_stone_pickaxe': {'equip': 'stone_pickaxe'},
  'equip_wooden_pickaxe': {'equip': 'wooden_pickaxe'},
  'equip_iron_pickaxe': {'equip': 'iron_pickaxe'},
  'craft_furnace': {'nearbyCraft': 'furnace'},
  'place_furnace': {'place': 'furnace'},
  'smelt_iron_ingot': {'nearbySmelt': 'iron_ingot'},
}
ACTIONS = {'diamond': BASIC | TOOLS, 'wood': BASIC, 'climb': BASIC}
NOOP: dict[str, Any] = {
  **dict.fromkeys(('forward', 'back', 'left', 'right'), 0),
  **dict.fromkeys(('jump', 'sneak', 'attack'), 0),
  'camera': (0, 0),
  **dict.fromkeys(('place', 'equip'), 'none'),
  **dict.fromkeys(('craft', 'nearbyCraft', 'nearbySmelt'), 'none'),
}

MILESTONES = (
  'log',
  'planks',
  'stick',
  'crafting_table',
  'wooden_pickaxe',
  'cobblestone',
  'stone_pickaxe',
  'iron_ore',
  'furnace',
  'iron_ingot',
  'iron_pickaxe',
  'diamond',
)
LOGGED = ('log', 'cobblestone', 'iron_ingot', 'diamond')

STICKY_ATTACK, STICKY_JUMP = 30, 10  # Steps.
PITCH = 60  # Degrees up and down.
HEALTH = 0.01  # Reward of all health.


class Minecraft(gymnasium.Env):
  """One task as a Gymnasium environment.

  Args:
    name: 'diamond', 'wood' or 'climb'.
    config: size (height, width) of the image; break_speed, factor of the speed
      at which blocks break; length in steps, 0 for no limit; python that runs
      it, '' for this one.
  """

  def __init__(self, name: str, config: Any):
    self._name, self._length = name, config.length
    self._env = Made(
      'minecraft',
      config.python,
      size=list(config.size),
      break_speed=config.break_speed,
    )
    observed, acted = map(_spaces, self._env.described)
    inventory = _spaces(observed['inventory'])
    self._items = [item for item in sorted(inventory) if item != 'log2']
    hand = _spaces(_spaces(observed['equipped_items'])['mainhand'])
    self._hands = len(hand['type']['values'])
    self._names = {
      key: x['values'] for key, x in acted.items() if 'values' in x
    }
    self._actions = [NOOP | parts for parts in ACTIONS[name].values()]
    # Blocks that break at once need no long attacks.
    self._sticky_attack = STICKY_ATTACK if config.break_speed == 1 else 0
    counts = Box(0, np.inf, (len(self._items),), np.float32)
    spaces = {
      'image': image_space((*config.size, 3)),
      'inventory': counts,
      'inventory_max': counts,
      'equipped': Box(0, 1, (self._hands,), np.float32),
      **{key: vector_space(()) for key in ('health', 'hunger', 'breath')},
      **{f'log/inventory/{item}': vector_space(()) for item in LOGGED},
    }
    self.observation_space = Dict(spaces)
    self.action_space = discrete_space(len(self._actions))

  def reset(self, *, seed=None, options=None):
    """Starts an episode in a new world; a seed starts a new sequence."""
    super().reset(seed=seed)
    given, info = self._env.reset(seed=int(self.np_random.integers(2**31 - 1)))
    self._steps = self._attacks = self._jumps = self._pitch = 0
    self._most = np.zeros(len(self._items), np.float32)
    self._before: dict[str, Any] = {}
    obs, _ = self._result(given)
    return obs, info

  def step(self, action):
    """Takes a step."""
    self._steps += 1
    given, _, over, _, info = self._env.step(self._command(int(action)))
    obs, reward = self._result(given)
    cut = not over and self._steps == self._length
    return obs, reward, over, cut, info

  def close(self):
    """Ends the game."""
    self._env.close()

  def _command(self, index: int) -> dict[str, Any]:
    """Returns the action of MineRL, with names as their numbers."""
    action = dict(self._actions[index])
    if action['attack']:
      self._attacks = self._sticky_attack
    if self._attacks:
      action.update(attack=1, jump=0)
      self._attacks -= 1
    if action['jump']:
      self._jumps = STICKY_JUMP
    if self._jumps:
      action.update(jump=1, forward=1)
      self._jumps -= 1
    up, right = action['camera']
    if abs(self._pitch + up) > PITCH:
      up = 0
    self._pitch += up
    action['camera'] = np.array([up, right], np.float32)
    for key, names in self._names.items():
      action[key] = names.index(action[key])
    return action

  def _result(self, given: Any) -> tuple[dict[str, Any], float]:
    """Returns the observation and the reward."""
    counts = dict(given['inventory'])
    counts['log'] = counts['log'] + counts['log2']
    life = given['life_stats']
    now = {
      **{item: int(counts[item]) for item in MILESTONES},
      'health': float(life['life']) / 20,
      'height': float(given['location_stats']['ypos']),
    }
    reward = self._reward(now) if self._before else 0.0
    self._before = now
    inventory = np.array([counts[item] for item in self._items], np.float32)
    self._most = np.maximum(self._most, inventory)
    obs = {
      'image': given['pov'],
      'inventory': inventory,
      'inventory_max': self._most,
      'equipped': np.eye(self._hands, dtype=np.float32)[
        given['equipped_items']['mainhand']['type']
      ],
      'health': np.float32(now['health']),
      'hunger': np.float32(life['food'] / 20),
      'breath': np.float32(life['air'] / 300),
      **{f'log/inventory/{item}': np.float32(now[item]) for item in LOGGED},
    }
    return obs, reward

  def _reward(self, now: dict[str, Any]) -> float:
    gained = {key: now[key] - self._before[key] for key in now}
    reward = HEALTH * gained['health']
    if self._name == 'wood':
      return reward + max(0, gained['log'])
    if self._name == 'climb':
      return reward + gained['height']
    most = dict(zip(self._items, self._most, strict=True))
    found = sum(now[item] > 0 == most[item] for item in MILESTONES)
    return reward + float(found)


def _spaces(space: dict[str, Any]) -> dict[str, Any]:
  return dict(space['spaces'])


def names(name: str, config: Any) -> Iterable[str]:
  """Returns the three tasks."""
  del name, config
  return ACTIONS


SUITE = registry.Suite(
  make=Minecraft,
  names=names,
  package='minerl',
  by_hand='install MineRL 0.4.4, and set env.minecraft.python',
)
