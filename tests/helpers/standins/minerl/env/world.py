"""A toy world with the recipes of Minecraft.

Attacking breaks a tree, or where the player looks down the ground, which needs
pickaxes. Jumping climbs, and going back hurts.
"""

import re

RECIPES = {
  'craft': {
    'planks': ({'log': 1}, 4),
    'stick': ({'planks': 2}, 4),
    'crafting_table': ({'planks': 4}, 1),
  },
  'craftNearby': {
    'wooden_pickaxe': ({'planks': 3, 'stick': 2}, 1),
    'stone_pickaxe': ({'cobblestone': 3, 'stick': 2}, 1),
    'iron_pickaxe': ({'iron_ingot': 3, 'stick': 2}, 1),
    'furnace': ({'cobblestone': 8}, 1),
  },
  'smeltNearby': {'iron_ingot': ({'iron_ore': 1, 'planks': 1}, 1)},
}
NEEDED = {'craftNearby': 'crafting_table', 'smeltNearby': 'furnace'}
GROUND = {
  'wooden_pickaxe': 'cobblestone',
  'stone_pickaxe': 'iron_ore',
  'iron_pickaxe': 'diamond',
}
ATTACKS = 40  # Until a block breaks.


class World:
  """The state of the game and its commands.

  Args:
    mission: XML of the mission.
    seed: Seed of the world, or None.
    shape: Shape of the view.
  """

  def __init__(self, mission, seed, shape):
    match = re.search(r'<BreakSpeedMultiplier>(.*?)<', mission)
    self._speed = float(match[1]) if match else 1.0
    self._seed, self._shape = seed or 0, shape
    self._items, self._placed, self._hand = {}, set(), 'air'
    self._pitch = self._yaw = self._damage = 0.0
    self._height = 64.0
    self._pressed, self.commands = {}, []
    self.life = 20

  def command(self, text):
    """Obeys a command, such as 'craft planks'."""
    self.commands.append(text)
    verb, *words = text.split(' ')
    if verb == 'camera':
      pitch, yaw = map(float, words)
      self._pitch = min(90.0, max(-90.0, self._pitch + pitch))
      self._yaw += yaw
    elif verb in ('craft', 'craftNearby', 'smeltNearby'):
      self._craft(verb, words[0])
    elif verb == 'place' and self._items.get(words[0]):
      self._items[words[0]] -= 1
      self._placed.add(words[0])
    elif verb == 'equip' and self._items.get(words[0]):
      self._hand = words[0]
    elif verb not in ('place', 'equip'):
      self._pressed[verb] = words == ['1']

  def tick(self):
    """Lets the keys act."""
    if self._pressed['back']:
      self.life -= 1
    if self._pressed['jump']:
      self._height += 1
    if not self._pressed['attack']:
      self._damage = 0.0
      return
    self._damage += self._speed
    if self._damage >= ATTACKS:
      self._damage = 0.0
      tree = 'log2' if self._seed % 2 else 'log'
      found = GROUND.get(self._hand, 'dirt') if self._pitch > 30 else tree
      self._add(found, 1)

  def _craft(self, verb, item):
    if item not in RECIPES[verb]:
      return
    if verb in NEEDED and NEEDED[verb] not in self._placed:
      return
    needs, number = RECIPES[verb][item]
    own = {x: [y for y in self._same(x) if self._items.get(y)] for x in needs}
    if all(
      sum(self._items[y] for y in own[x]) >= count for x, count in needs.items()
    ):
      for x, count in needs.items():
        for _ in range(count):
          first = next(y for y in own[x] if self._items[y])
          self._items[first] -= 1
      self._add(item, number)

  def _same(self, item):
    return ('log', 'log2') if item == 'log' else (item,)

  def _add(self, item, number):
    self._items[item] = self._items.get(item, 0) + number

  def info(self):
    """Returns the state as the game sends it."""
    height, width, channels = self._shape
    row = (
      bytes([self._seed % 256, int(self._pitch) % 256, 9][:channels]) * width
    )
    stacks = [
      {'type': item, 'quantity': number, 'metadata': 0}
      for item, number in self._items.items()
      if number
    ]
    empty = {'type': 'air', 'quantity': 0, 'metadata': 0}
    hand = {'type': self._hand, 'damage': 0, 'maxDamage': 0, 'metadata': 0}
    return {
      'pov': row * height,
      'inventory': stacks + [empty] * (36 - len(stacks)),
      'equipped_items': {'mainhand': hand},
      'life': float(self.life),
      'food': 18,
      'air': 150,
      'ypos': self._height,
    }
