"""Minecraft by MineRL 0.4.4.

Runs in any Python from 3.8 with minerl, without the rest of the project. MineRL
0.4.4 needs the old gym and Java 8.
"""

from __future__ import annotations

from typing import Any

import numpy as np

KEYS = 'forward', 'back', 'left', 'right', 'jump', 'sneak', 'attack'


def make(size: list, break_speed: float) -> Checked:
  """Makes a world without goals.

  Args:
    size: Height and width of the image.
    break_speed: Factor of the speed at which blocks break.
  """
  # MineRL 0.4.4 uses names that newer versions of NumPy lack.
  for name, kind in (('float', float), ('int', int), ('bool', bool)):
    if not hasattr(np, name):
      setattr(np, name, kind)
  return Checked(_spec(size, break_speed).make())


class Checked:
  """A MineRL environment that raises if it loses its connection.

  MineRL returns a random observation of its space instead.
  """

  def __init__(self, env: Any):
    self._env = env
    self.observation_space = env.observation_space
    self.action_space = env.action_space

  def seed(self, seed: int) -> None:
    """Sets the seed of the next world."""
    self._env.seed(seed)

  def reset(self) -> Any:
    """Makes a new world."""
    return self._env.reset()

  def step(self, action: Any) -> Any:
    """Takes a step."""
    obs, reward, done, info = self._env.step(action)
    if 'error' in info:
      raise ConnectionError(info['error'])
    return obs, reward, done, info

  def close(self) -> None:
    """Ends the game."""
    self._env.close()


def _spec(size: list, break_speed: float) -> Any:
  """Returns the description of the world, its observations and actions."""
  from minerl.herobraine.env_spec import EnvSpec
  from minerl.herobraine.hero import handler, handlers, mc

  class BreakSpeed(handler.Handler):
    """Makes blocks break faster."""

    multiplier = break_speed

    def to_string(self):
      return f'break_speed({self.multiplier})'

    def xml_template(self):
      return '<BreakSpeedMultiplier>{{multiplier}}</BreakSpeedMultiplier>'

  class World(EnvSpec):
    """A new world in each episode, at its start time, with monsters."""

    def create_agent_start(self):
      return [BreakSpeed()]

    def create_observables(self):
      equipped = {'_default': 'air', '_other': 'other'}
      return [
        handlers.POVObservation((size[1], size[0])),
        handlers.FlatInventoryObservation(mc.ALL_ITEMS),
        handlers.EquippedItemObservation(mc.ALL_ITEMS, **equipped),
        handlers.ObservationFromCurrentLocation(),
        handlers.ObservationFromLifeStats(),
      ]

    def create_actionables(self):
      items = ['none', *mc.ALL_ITEMS]
      none = {'_default': 'none', '_other': 'none'}
      return [
        *(
          handlers.KeybasedCommandAction(key, mc.INVERSE_KEYMAP[key])
          for key in KEYS
        ),
        handlers.CameraAction(),
        handlers.PlaceBlock(items, **none),
        handlers.EquipAction(items, **none),
        handlers.CraftAction(items, **none),
        handlers.CraftNearbyAction(items, **none),
        handlers.SmeltItemNearby(items, **none),
      ]

    def create_server_world_generators(self):
      return [handlers.DefaultWorldGenerator(force_reset=True)]

    def create_server_initial_conditions(self):
      return [
        handlers.TimeInitialCondition(allow_passage_of_time=True, start_time=0),
        handlers.SpawningInitialCondition(allow_spawning=True),
      ]

    def create_server_quit_producers(self):
      return [handlers.ServerQuitWhenAnyAgentFinishes()]

    def create_agent_handlers(self):
      return []

    create_rewardables = create_monitors = create_agent_handlers
    create_server_decorators = create_agent_handlers

    def is_from_folder(self, folder):
      return False

    def determine_success_from_rewards(self, rewards):
      return True

    def get_docstring(self):
      return ''

  return World(name='DreamerWorld-v1')
