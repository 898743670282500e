"""Specification of an environment."""

import abc
import importlib

from minerl.herobraine.hero import spaces


class EnvSpec(abc.ABC):
  """Handlers of a mission; `reset` makes them anew."""

  def __init__(
    self,
    name,
    max_episode_steps=None,
    reward_threshold=None,
    agent_count=None,
  ):
    assert agent_count is None
    self.name = name
    self.max_episode_steps = max_episode_steps
    self.reward_threshold = reward_threshold
    self.reset()

  def reset(self):
    """Makes all handlers."""
    self.observables = self.create_observables()
    self.actionables = self.create_actionables()
    self.rewardables = self.create_rewardables()
    self.agent_handlers = self.create_agent_handlers()
    self.monitors = self.create_monitors()
    self.server_initial_conditions = self.create_server_initial_conditions()
    self.server_world_generators = self.create_server_world_generators()
    self.server_decorators = self.create_server_decorators()
    self.server_quit_producers = self.create_server_quit_producers()
    self.agent_start = [self.create_agent_start()]
    for handlers in (self.observables, self.actionables):
      names = [each.to_string() for each in handlers]
      assert len(names) == len(set(names))
    self.observation_space = self._space(self.observables)
    self.action_space = self._space(self.actionables)

  @staticmethod
  def _space(handlers):
    return spaces.Dict({each.to_string(): each.space for each in handlers})

  def to_xml(self):
    """Returns the mission."""
    handlers = [
      *self.agent_start[0],
      *self.server_initial_conditions,
      *self.server_world_generators,
      *self.server_quit_producers,
    ]
    return ''.join(each.xml() for each in handlers)

  def make(self, fake=False, **kwargs):
    """Returns the environment."""
    assert not fake
    module = importlib.import_module('minerl.env._singleagent')
    return module._SingleAgentEnv(env_spec=self, **kwargs)

  @abc.abstractmethod
  def create_observables(self):
    """Returns the observations."""

  @abc.abstractmethod
  def create_actionables(self):
    """Returns the actions."""

  @abc.abstractmethod
  def create_rewardables(self):
    """Returns the rewards."""

  @abc.abstractmethod
  def create_agent_start(self):
    """Returns the handlers of the start of a player."""

  @abc.abstractmethod
  def create_agent_handlers(self):
    """Returns other handlers of a player."""

  @abc.abstractmethod
  def create_monitors(self):
    """Returns the handlers of the infos."""

  @abc.abstractmethod
  def create_server_initial_conditions(self):
    """Returns the conditions at the start."""

  @abc.abstractmethod
  def create_server_decorators(self):
    """Returns the changes of the world."""

  @abc.abstractmethod
  def create_server_world_generators(self):
    """Returns the generators of the world."""

  @abc.abstractmethod
  def create_server_quit_producers(self):
    """Returns the ends of the mission."""

  @abc.abstractmethod
  def is_from_folder(self, folder):
    """Returns whether a folder has recordings of it."""

  @abc.abstractmethod
  def determine_success_from_rewards(self, rewards):
    """Returns whether rewards mean success."""

  @abc.abstractmethod
  def get_docstring(self):
    """Returns its documentation."""
