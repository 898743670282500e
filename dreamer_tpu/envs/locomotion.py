"""Mazes with a goal, and bodies for them, made of dm_control's parts.

Load dm_control before this module, by `dm_control.load`.
"""

import math
from collections.abc import Mapping
from typing import Any

import labmaze
import numpy as np
from dm_control import composer, mjcf
from dm_control.composer.observation import observable
from dm_control.locomotion.arenas import labmaze_textures, mazes
from dm_control.locomotion.props import target_sphere
from dm_control.locomotion.tasks import random_goal_maze
from dm_control.locomotion.walkers import ant, cmu_humanoid, legacy_base
from dm_control.suite import common
from dm_control.suite import quadruped as suite

Color = tuple[int, int, int]

SECONDS = 60  # Length of an episode.
CELL = 1.2  # Width of a cell of a maze in meters.
MIN_PHYSICS_HZ = 50  # Steps of the physics per second, at least 4 per action.

TOES = ('front_left', 'front_right', 'back_right', 'back_left')


def make(
  body: str, layout: str, colors: Mapping[str, Color], hz: int, camera: bool
) -> tuple[Any, composer.Environment]:
  """Makes a body and the environment of reaching a goal with it.

  Args:
    body: 'ant', 'quadruped' or 'humanoid'.
    layout: Lines of one length. P is the start, G the goal, a space is free,
      all others are walls.
    colors: RGB of the walls by their character.
    hz: Actions per second.
    camera: Whether the body's camera is observed.
  """
  walker = BODIES[body]()
  random_state = np.random.RandomState()
  arena = mazes.MazeWithTargets(
    labmaze.FixedMazeWithRandomGoals(
      layout, num_spawns=1, num_objects=1, random_state=random_state
    ),
    xy_scale=CELL,
    wall_textures={key: Wall(color) for key, color in colors.items()},
  )
  task = ReachGoal(
    walker,
    arena,
    target_sphere.TargetSphere(radius=1.2),
    max_repeats=1,
    aliveness_threshold=-1.0,
    contact_termination=False,
    physics_timestep=1 / hz / max(4, math.ceil(MIN_PHYSICS_HZ / hz)),
    control_timestep=1 / hz,
  )
  walker.observables.egocentric_camera.enabled = camera
  return walker, composer.Environment(
    task,
    time_limit=SECONDS,
    random_state=random_state,
    strip_singleton_obs_buffer_dim=True,
  )


class ReachGoal(random_goal_maze.RepeatSingleGoalMaze):
  """Rewards each step from the one on that reaches the goal."""

  def after_step(self, physics, random_state):
    """Checks the goal; does not move the body back to the start."""
    super(random_goal_maze.RepeatSingleGoalMaze, self).after_step(
      physics, random_state
    )
    self._rewarded_this_step = self._target.activated


class Wall(labmaze_textures.WallTextures):
  """A wall of one color."""

  def _build(self, color: Color) -> None:
    self._mjcf_root = mjcf.RootElement(model='wall')
    rgb = [value / 255 for value in color]
    self._textures = [
      self._mjcf_root.asset.add(
        'texture',
        type='2d',
        name='wall',
        builtin='flat',
        rgb1=rgb,
        width=100,
        height=100,
      )
    ]


class Quadruped(ant.Ant):
  """A walker with four legs, each with three joints and a toe."""

  def _build(self, name='walker', initializer=None):
    super(ant.Ant, self)._build(initializer=initializer)
    xml = suite.make_model(rangefinders=True)
    self._mjcf_root = root = mjcf.from_xml_string(xml, assets=common.ASSETS)
    root.model = name
    # The arena has floor, sky and lights, and adds the joint itself.
    root.find('geom', 'floor').remove()
    root.find('camera', 'global').remove()
    root.find('joint', 'root').remove()
    root.find('texture', 'skybox').remove()
    root.visual.remove()
    spec = self.action_spec
    self._prev_action = np.zeros(spec.shape, spec.dtype)

  def _build_observables(self):
    return QuadrupedObservables(self)

  @property
  def _foot_bodies(self):
    return tuple(self._mjcf_root.find('body', f'toe_{toe}') for toe in TOES)

  @composer.cached_property
  def observable_joints(self):
    """Joints whose positions and velocities are observed."""
    return self._mjcf_root.find_all('joint')


class QuadrupedObservables(legacy_base.WalkerObservables):
  """Observations of the quadruped."""

  @composer.observable
  def actuator_activations(self):
    """States of the actuators."""
    return observable.Generic(lambda physics: physics.data.act)

  @composer.observable
  def root_global_pos(self):
    """Position of the walker in the arena."""

    def position(physics: Any) -> np.ndarray:
      return np.reshape(self._entity.get_pose(physics)[0], -1)

    return observable.Generic(position)

  @composer.observable
  def torso_global_pos(self):
    """Position of the torso in the arena."""
    return observable.MJCFFeature('xpos', self._entity.root_body)

  @property
  def proprioception(self):
    """Observations of the body itself."""
    return [
      self.joints_pos,
      self.joints_vel,
      self.actuator_activations,
      self.sensors_accelerometer,
      self.sensors_gyro,
      self.sensors_velocimeter,
      self.sensors_force,
      self.sensors_torque,
      self.world_zaxis,
      self.root_global_pos,
      self.torso_global_pos,
      *self._collect_from_attachments('proprioception'),
    ]


BODIES = {
  'ant': ant.Ant,
  'quadruped': Quadruped,
  'humanoid': cmu_humanoid.CMUHumanoidPositionControlled,
}
