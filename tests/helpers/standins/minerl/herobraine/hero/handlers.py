"""Observations, actions, and settings of the server."""

import numpy as np

from minerl.herobraine.hero import mc, spaces
from minerl.herobraine.hero.handler import Handler


class Translation(Handler):
  """A handler with a space."""

  xml_of = ''

  def __init__(self, name, space):
    self._name = name
    self.space = space

  def to_string(self):
    return self._name

  def xml_template(self):
    return self.xml_of


class Observation(Translation):
  """A part of the observation, from the state of the game `info`."""

  def from_hero(self, info):
    raise NotImplementedError()


class POVObservation(Observation):
  """The player's view; the resolution is (width, height)."""

  def __init__(self, video_resolution, include_depth=False):
    self.video_width, self.video_height = video_resolution
    shape = [*list(video_resolution)[::-1], 4 if include_depth else 3]
    super().__init__('pov', spaces.Box(0, 255, shape, dtype=np.uint8))

  def from_hero(self, info):
    rows = np.frombuffer(info['pov'], dtype=np.uint8)
    return rows.reshape(self.space.shape)[::-1, :, :]


class FlatInventoryObservation(Observation):
  """Counts of items."""

  def __init__(self, item_list, _other='other'):
    self.items = sorted(item_list)
    count = {'low': 0, 'high': 2304, 'shape': (), 'dtype': np.int32}
    each = {x: spaces.Box(**count, normalizer_scale='log') for x in self.items}
    super().__init__('inventory', spaces.Dict(each))

  def from_hero(self, info):
    counts = {item: np.array(0) for item in self.items}
    for stack in info['inventory']:
      if stack['type'] == 'air':
        counts['air'] += 1
      elif stack['type'] in counts:
        counts[stack['type']] += stack['quantity']
    return counts


class EquippedItemObservation(Observation):
  """The item in the main hand."""

  def __init__(
    self,
    items,
    mainhand=True,
    offhand=False,
    armor=False,
    _default='none',
    _other='other',
  ):
    assert mainhand
    assert not offhand
    assert not armor
    items = list(items)
    items += [x for x in (_other, _default) if x not in items]
    self._items, self._default, self._other = sorted(items), _default, _other
    damage = {'low': -1, 'high': 1562, 'shape': (), 'dtype': int}
    hand = {
      'damage': spaces.Box(**damage),
      'maxDamage': spaces.Box(**damage),
      'type': spaces.Enum(*self._items, default=_default),
    }
    inner = spaces.Dict({'mainhand': spaces.Dict(hand)})
    super().__init__('equipped_items', inner)

  def from_hero(self, info):
    try:
      hand = info['equipped_items']['mainhand']
    except KeyError:
      zero = np.array(0, dtype=int)
      return {
        'mainhand': {'damage': zero, 'maxDamage': zero, 'type': self._default}
      }
    known = hand['type'] in self._items
    return {
      'mainhand': {
        'damage': np.array(hand['damage']),
        'maxDamage': np.array(hand['maxDamage']),
        'type': hand['type'] if known else self._other,
      }
    }


# Bounds, dtype, and value if it is missing.
LIFE = {
  'is_alive': (0, 1, np.bool_, True),
  'life': (0, mc.MAX_LIFE, np.float64, mc.MAX_LIFE),
  'score': (0, mc.MAX_SCORE, np.int64, 0),
  'food': (0, mc.MAX_FOOD, np.int64, mc.MAX_FOOD),
  'saturation': (0, mc.MAX_FOOD_SATURATION, np.float64, 5.0),
  'xp': (0, mc.MAX_XP, np.int64, 0),
  'air': (0, mc.MAX_BREATH, np.int64, 300),
}
LOCATION = {
  'xpos': (-640000.0, 640000.0, np.float64, 0.0),
  'ypos': (-640000.0, 640000.0, np.float64, 0.0),
  'zpos': (-640000.0, 640000.0, np.float64, 0.0),
  'pitch': (-180.0, 180.0, np.float64, 0.0),
  'yaw': (-180.0, 180.0, np.float64, 0.0),
  'biome_id': (0, 167, np.int64, 0),
  'biome_rainfall': (0.0, 1.0, np.float32, 0.5),
  'biome_temperature': (0.0, 1.0, np.float32, 0.5),
  'can_see_sky': (0, 1, np.int64, 1),
  'is_raining': (0, 1, np.int64, 0),
  'light_level': (0, 15, np.int64, 15),
  'sea_level': (0, 255, np.int64, 63),
  'sky_light_level': (0.0, 1.0, np.float64, 0.71),
  'sun_brightness': (0.0, 1.0, np.float64, 0.94),
}


class Group(Observation):
  """Numbers, with values for those that are missing."""

  def __init__(self, name, parts):
    self._parts = parts
    inner = {
      key: spaces.Box(low=low, high=high, shape=(), dtype=dtype)
      for key, (low, high, dtype, _) in parts.items()
    }
    super().__init__(name, spaces.Dict(inner))

  def from_hero(self, info):
    return {
      key: np.array(info.get(key, part[3])) for key, part in self._parts.items()
    }


class ObservationFromLifeStats(Group):
  """Health, food and breath."""

  def __init__(self):
    super().__init__('life_stats', LIFE)


class ObservationFromCurrentLocation(Group):
  """Position and surroundings."""

  def __init__(self):
    super().__init__('location_stats', LOCATION)


class Action(Translation):
  """A command of the game; the name of the command may differ from its own."""

  def __init__(self, name, space, command=None):
    super().__init__(name, space)
    self._command = command or name

  def to_hero(self, x):
    """Returns a value as a command."""
    if isinstance(x, np.ndarray):
      words = map(str, x.flatten().tolist())
    elif isinstance(x, str):
      words = [x]
    else:
      words = map(str, x) if isinstance(x, (list, tuple)) else [str(x)]
    return f'{self._command} {" ".join(words)}'


class KeybasedCommandAction(Action):
  """A key that is pressed or not."""

  def __init__(self, command, *keys):
    assert len(keys) == 1
    super().__init__(command, spaces.Discrete(2))


class CameraAction(Action):
  """Turns by (pitch, yaw) in degrees."""

  def __init__(self):
    turn = spaces.Box(low=-180, high=180, shape=[2], dtype=np.float32)
    super().__init__('camera', turn)


class ItemListAction(Action):
  """A command about one item of a list."""

  names = '', ''

  def __init__(self, items, _other='other', _default='none'):
    for item in items:
      assert '#' not in item
    items = list(items)
    items += [x for x in (_other, _default) if x not in items]
    space = spaces.Enum(*dict.fromkeys(items), default=_default)
    super().__init__(self.names[0], space, self.names[1])


class PlaceBlock(ItemListAction):
  """Places a block."""

  names = 'place', 'place'


class EquipAction(ItemListAction):
  """Takes an item in the hand; its item must be in the list."""

  names = 'equip', 'equip'

  def to_hero(self, x):
    if x not in self.space.values:
      raise ValueError(f'{x} is not found in {list(self.space.values)}')
    return super().to_hero(x)


class CraftAction(ItemListAction):
  """Crafts an item by hand."""

  names = 'craft', 'craft'


class CraftNearbyAction(ItemListAction):
  """Crafts an item near a crafting table."""

  names = 'nearbyCraft', 'craftNearby'


class SmeltItemNearby(ItemListAction):
  """Smelts an item near a furnace."""

  names = 'nearbySmelt', 'smeltNearby'


class Setting(Handler):
  """A setting of the server."""

  def to_string(self):
    return type(self).__name__

  def xml_template(self):
    return f'<{type(self).__name__}/>'


class DefaultWorldGenerator(Setting):
  """Generates worlds as the game does."""

  def __init__(self, force_reset=True, generator_options='{}'):
    self.force_reset = force_reset
    self.generator_options = generator_options


class TimeInitialCondition(Setting):
  """Sets the time of the day."""

  def __init__(self, allow_passage_of_time, start_time=None):
    self.allow_passage_of_time = allow_passage_of_time
    self.start_time = start_time


class SpawningInitialCondition(Setting):
  """Allows monsters and animals."""

  def __init__(self, allow_spawning):
    self.allow_spawning = allow_spawning


class ServerQuitWhenAnyAgentFinishes(Setting):
  """Ends the mission as its player dies."""
