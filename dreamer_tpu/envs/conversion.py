"""Conversion between the spaces of an environment and those of the agent.

Decided once, from the environment's own spaces; saved with every checkpoint, so
that `load_policy` takes what the environment gives and returns what it takes.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any, Self

import gymnasium
import numpy as np
from gymnasium.spaces import Tuple

from dreamer_tpu import image_size
from dreamer_tpu.envs import actions, kinds, nested, observations, pictures
from dreamer_tpu.envs.observations import LOG
from dreamer_tpu.errors import UserError

RESERVED = ('reward', 'is_first', 'is_last', 'is_terminal', 'consec')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """Options of a conversion.

  Attributes:
    keys: Pattern that fully matches the observations that the agent sees.
    size: Height and width of images. (0, 0) leaves them as they are; None keeps
      a size that all images share and the encoder can take, otherwise images
      get four times four cells of the encoder.
    action_scale: Factor of actions without bounds.
    stages: Number of times that the encoder halves images.
  """

  keys: str = '.*'
  size: tuple[int, int] | None = None
  action_scale: float = 1.0
  stages: int = 4


DEFAULT = Rules()


class Conversion:
  """Converts observations to those of the agent, and its actions back.

  Attributes:
    observation_space: The environment's own space, of one environment.
    action_space: The environment's own space, of one environment.
    rules: Options.
    obs_space: Space of each observation key of the agent; see `kinds`.
    act_space: Space of each action key of the agent.
    own_observations: The environment's own space of each observation that the
      agent sees, by the names of `obs_space`.
    own_actions: The environment's own space of each action without parts.
  """

  def __init__(
    self,
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    rules: Rules = DEFAULT,
  ):
    """Decides how the spaces are converted.

    Args:
      observation_space: Space of one environment.
      action_space: Space of one environment.
      rules: Options.

    Raises:
      UserError: The agent cannot take a space.
    """
    self.observation_space = observation_space
    self.action_space = action_space
    self.rules = rules
    self._key, self._observations, self._unseen = _observation_leaves(
      observation_space, rules
    )
    self._paths = nested.paths(observation_space, self._key)
    # The keys of a Tuple are those of observations as well.
    self._prefix = 'action/' if isinstance(action_space, Tuple) else ''
    own = nested.flatten(observation_space, self._key)
    self.own_observations = {
      k: own[k] for k in self._observations if not k.startswith(LOG)
    }
    self.own_actions = {
      f'{self._prefix}{name}': space
      for name, space in nested.flatten(action_space, 'action').items()
    }
    self._actions = {
      name: actions.leaf(name, space, rules.action_scale)
      for name, space in self.own_actions.items()
    }
    self.obs_space = {k: v.space for k, v in self._observations.items()}
    self.act_space = {
      k: v for leaf in self._actions.values() for k, v in leaf.spaces.items()
    }
    _check_names(self.obs_space, self.act_space)

  def observation(
    self, value: Any, lead: int = 0, keys: Collection[str] = ()
  ) -> dict[str, np.ndarray]:
    """Returns the agent's observations.

    Args:
      value: Value of the environment's observation space, or of a batch of it
        as Gymnasium's vector environments return it.
      lead: Number of batch axes.
      keys: Keys to return, all by default. Others may be missing.

    Returns:
      Array [..., *shape] for each key of `obs_space`.

    Raises:
      UserError: The value does not fit the space.
    """
    name = ''
    try:
      result = {}
      for name, part in self._leaves(value, keys).items():
        result[name] = self._observations[name].convert(part, lead)
      return result
    except (ValueError, TypeError) as error:
      which = f'observation {name!r}' if name else 'the observation'
      raise UserError(f'{which} {error}') from error

  def action(self, act: dict[str, Any], lead: int = 0) -> Any:
    """Returns the environment's action.

    Args:
      act: Array [..., *shape] for each key of `act_space`.
      lead: Number of batch axes.
    """
    made = {k: leaf.convert(act, lead) for k, leaf in self._actions.items()}
    return self._join(self.action_space, made, self._prefix, 'action')

  def traced_observation(self, value: Any) -> dict[str, Any]:
    """Returns the agent's observations inside a compiled program.

    Args:
      value: Value of the observation space of one environment, as JAX arrays.

    Returns:
      JAX array [*shape] for each key of `obs_space`.
    """
    import jax.numpy as jnp

    leaves = self._leaves(value, ()).items()
    return {k: self._observations[k].traced(jnp.asarray(x)) for k, x in leaves}

  def traced_action(self, act: dict[str, Any]) -> Any:
    """Returns the environment's action inside a compiled program.

    Args:
      act: JAX array [*shape] for each key of `act_space`.
    """
    made = {k: leaf.traced(act) for k, leaf in self._actions.items()}
    return self._join(self.action_space, made, self._prefix, 'action')

  def observe(self, name: str, value: Any, lead: int) -> np.ndarray:
    """Returns one observation of the agent; see `ObservationLeaf.convert`."""
    return self._observations[name].convert(value, lead)

  def invert(self, name: str, value: Any, lead: int) -> dict[str, np.ndarray]:
    """Returns the agent's actions for one of `own_actions`; see `kinds`."""
    return self._actions[name].invert(value, lead)

  def made_of(self, name: str) -> list[str]:
    """Returns the agent's actions that make one of `own_actions`."""
    return list(self._actions[name].spaces)

  def batch_axes(self, value: Any, keys: Collection[str] = ()) -> int:
    """Returns 0 for the observation of one environment, 1 for a batch.

    Args:
      value: Observation, as in `observation`.
      keys: Keys that are there, as in `observation`.

    Raises:
      UserError: A key is missing.
    """
    try:
      leaves = self._leaves(value, keys)
    except (ValueError, TypeError) as error:
      raise UserError(f'the observation {error}') from error
    own = nested.flatten(self.observation_space, self._key)
    ranks = {k: np.ndim(x) - len(own[k].shape or ()) for k, x in leaves.items()}
    # A number may be given as [1].
    sure = [v for k, v in ranks.items() if own[k].shape not in ((), (1,))]
    return int(min(sure or ranks.values()) > 0)

  def table(self) -> list[str]:
    """Returns a line for each part that the agent sees or acts otherwise."""
    own = nested.flatten(self.observation_space, self._key)
    rows = [
      (name, nested.describe(own[name]), leaf.note)
      for name, leaf in self._observations.items()
    ]
    rows += [
      (name, nested.describe(own[name]), f'not seen: {reason}')
      for name, reason in self._unseen.items()
    ]
    rows += [
      (name, nested.describe(self.own_actions[name]), leaf.note)
      for name, leaf in self._actions.items()
    ]
    rows = [row for row in rows if row[2]]
    first, second = (
      max((len(row[i]) for row in rows), default=0) for i in (0, 1)
    )
    return [f'{k:{first}}  {own:{second}}  {note}' for k, own, note in rows]

  def to_json(self) -> dict[str, Any]:
    """Returns the conversion as JSON values."""
    return {
      'observation_space': nested.to_json(self.observation_space),
      'action_space': nested.to_json(self.action_space),
      'rules': dataclasses.asdict(self.rules),
    }

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> Self:
    """Returns the conversion of `to_json`."""
    rules = dict(value['rules'])
    size = rules.pop('size')
    return cls(
      nested.from_json(value['observation_space']),
      nested.from_json(value['action_space']),
      Rules(**rules, size=tuple(size) if size else None),
    )

  def __reduce__(self) -> Any:
    own = self.observation_space, self.action_space, self.rules
    return type(self), own  # Its functions cannot be pickled.

  def _leaves(self, value: Any, keys: Collection[str]) -> dict[str, Any]:
    keys = keys or self._observations
    result = {}
    try:
      for name in keys:
        part = value
        for key in self._paths[name]:
          part = part[key]
        result[name] = part
      return result
    except (KeyError, IndexError, TypeError):  # Explained here.
      space = self.observation_space
      return nested.flatten_value(space, value, self._key, keys)

  def _join(
    self, space: gymnasium.Space, made: dict[str, Any], prefix: str, key: str
  ) -> Any:
    children = nested.parts(space)
    if children is None:
      return made[key]
    values = {
      name: self._join(child, made, f'{prefix}{name}/', f'{prefix}{name}')
      for name, child in children.items()
    }
    return nested.join(space, values)


def _observation_leaves(
  space: gymnasium.Space, rules: Rules
) -> tuple[str, dict[str, kinds.ObservationLeaf], dict[str, str]]:
  """Returns the key of a space without parts, leaves, and unseen keys."""
  key = 'image' if pictures.of(space) else 'vector'
  own = nested.flatten(space, key)
  seen, unseen = _choose(own, rules.keys)
  images = {k: x for k, v in seen.items() if (x := pictures.of(v))}
  size_of = pictures.common_size(
    images.values(),
    rules.size,
    lambda size: image_size.fits(size, rules.stages),
    (4 * 2**rules.stages,) * 2,
  )
  leaves = {
    k: images[k].leaf(size_of(images[k]))
    if k in images
    else observations.leaf(v)
    for k, v in seen.items()
  }
  logs = {k: v for k, v in own.items() if k.startswith(LOG)}
  leaves |= {k: observations.log_leaf(k, v) for k, v in logs.items()}
  return key, leaves, unseen


def _choose(
  own: Mapping[str, gymnasium.Space], regex: str
) -> tuple[dict[str, gymnasium.Space], dict[str, str]]:
  """Returns the observations that the agent sees, and why it sees no others."""
  seen, unseen = {}, {}
  for name, space in own.items():
    if name.startswith(LOG):
      continue
    supported = observations.supported(space)
    if not re.fullmatch(regex, name):
      unseen[name] = f'env.keys={regex}'
    elif supported:
      seen[name] = space
    elif regex == Rules.keys:
      unseen[name] = f'the agent cannot take a {nested.describe(space)}'
    else:
      raise UserError(
        f'env.keys={regex} chooses {name!r}, a {nested.describe(space)} space '
        'that the agent cannot take: leave it out'
      )
  if not seen:
    keys = ', '.join(f'{k} ({why})' for k, why in unseen.items())
    raise UserError(
      f'there is nothing to observe except {keys or "log/... keys"}: '
      f'{kinds.SUPPORTED}'
    )
  return seen, unseen


def _check_names(obs: Mapping[str, Any], act: Mapping[str, Any]) -> None:
  """Checks that no key is reserved or both an observation and an action."""
  for kind, keys in (('observation', obs), ('action', act)):
    for key in keys:
      if key in RESERVED or key.startswith('latent/'):
        raise UserError(
          f'{kind} key {key!r} is reserved: rename it (reserved: '
          f'{", ".join(RESERVED)} and latent/...)'
        )
      if kind == 'action' and key.startswith(LOG):
        raise UserError(f'action key {key!r}: log/... is only for observations')
      if kind == 'action' and key in obs:
        raise UserError(
          f'key {key!r} is in the observations and in the actions: rename one'
        )
