"""Acts with a trained agent, without anything that only training needs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from dreamer_tpu.agent import Agent, Space
from dreamer_tpu.checkpoint import layout
from dreamer_tpu.checkpoint.dreamerv3 import agent_config, unpickle
from dreamer_tpu.checkpoint.partial import restore_partial
from dreamer_tpu.checkpoint.restore import shorten
from dreamer_tpu.cli import platform
from dreamer_tpu.envs import Conversion, Rules, kinds
from dreamer_tpu.errors import UserError

Tree = dict[str, Any]
Spaces = Mapping[str, Space]
MODULES = ('encoder', 'rssm', 'policy')


def load_policy(
  path: epath.PathLike, *, mode: bool = True, seed: int | None = 0
) -> 'Policy':
  """Loads the policy of a run; no optimizer, no replay.

  Args:
    path: Logdir, checkpoints folder, step folder, or folder of the public
      implementation (agent.pkl, with config.yaml in it or above it).
    mode: Whether to act with the mode of the policy instead of a sample.
    seed: Seed of the samples of the world model's state and, without `mode`,
      of actions. None takes modes of both.

  Raises:
    UserError: There is no checkpoint, or it is corrupt.
  """
  platform.choose()
  loaded = load_agent(path)
  conversion = loaded.conversion or _conversion_of(loaded.agent)
  return Policy(loaded.agent, loaded.params, conversion, mode=mode, seed=seed)


class LoadedAgent(NamedTuple):
  """An agent that can act but not train.

  Attributes:
    agent: The agent's functions.
    params: Parameters of encoder, RSSM and policy, in the agent's dtype.
    step: Agent steps of its run.
    update: Updates of its run.
    conversion: Conversion of the spaces of its environment; None for agents of
      the public implementation and of earlier versions.
  """

  agent: Agent
  params: Tree
  step: int
  update: int
  conversion: Conversion | None


def load_agent(
  path: epath.PathLike,
  dtype: jnp.dtype = jnp.float32,
  spaces: tuple[Spaces, Spaces] | None = None,
) -> LoadedAgent:
  """Loads the parts of an agent that act: encoder, RSSM and policy.

  Args:
    path: Path as in `load_policy`.
    dtype: Dtype of parameters and computations.
    spaces: Observations and actions of the environment to act in; by default
      those of training.

  Raises:
    UserError: There is no checkpoint, it is corrupt, or does not fit `spaces`.
  """
  folder, conversion = unpickle.find(path), None
  if folder is None:
    run = layout.read_newest(path, layout.read_run)
    conversion = _saved_conversion(run)
    config = agent_config.namespace(run['config']['agent'])
    trained = trained_spaces(run)
    step, update = run['step'], run['update']
    if spaces is not None:
      _check(path, 'observation', spaces[0], trained[0])
      _check(path, 'action', spaces[1], trained[1])
  else:
    config, obs_space, act_space, counters = agent_config.describe(folder)
    trained = obs_space, act_space
    step, update = counters.get('actions', 0), counters.get('updates', 0)
  agent = Agent(*(spaces or trained), config, dtype=dtype)
  abstract = nnx.to_pure_dict(agent.variables)
  params, report = restore_partial(
    path, '.*', {k: abstract[k] for k in MODULES}
  )
  if report.missing:
    raise UserError(
      f"'{path}' lacks parameters that the agent needs: "
      f'{shorten(report.missing)}.'
    )
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  return LoadedAgent(agent, params, step, update, conversion)


def load_rules(path: epath.PathLike) -> Rules | None:
  """Returns the options of the conversion that an agent was trained with.

  Args:
    path: Path as in `load_policy`.

  Returns:
    None for agents of the public implementation and of earlier versions.

  Raises:
    UserError: There is no checkpoint, or it is corrupt.
  """
  if unpickle.find(path):
    return None
  conversion = _saved_conversion(layout.read_newest(path, layout.read_run))
  return conversion.rules if conversion else None


class Policy:
  """A policy as a function of its carry.

  Attributes:
    observation_space: Gymnasium space of the environment's own observations.
    action_space: Gymnasium space of its own actions.
    obs_space: Spaces of the observations that the encoder reads, by key.
    act_space: Spaces of the agent's actions by key.
  """

  def __init__(
    self,
    agent: Agent,
    params: Tree,
    conversion: Conversion,
    *,
    mode: bool,
    seed: int | None,
  ):
    self.observation_space = conversion.observation_space
    self.action_space = conversion.action_space
    self.obs_space = {k: agent.obs_space[k] for k in agent.policy_keys}
    self.act_space = agent.act_space
    self._agent = agent
    self._params = params
    self._conversion = conversion
    self._mode = mode
    self._seed = seed
    self._step = jax.jit(self._step_fn)

  def initial(self, batch_size: int = 1) -> Tree:
    """Returns the carry of environments that start an episode."""
    return {
      'agent': self._agent.initial_carry(batch_size),
      'is_first': np.ones(batch_size, bool),
      'count': np.uint32(0),
    }

  def __call__(
    self, carry: Tree, obs: Any, is_first: Any = None
  ) -> tuple[Tree, Any]:
    """Chooses actions.

    Args:
      carry: Carry from `initial` or the previous call.
      obs: Observation of the environment, as it returns it, or a batch of them
        as a Gymnasium vector environment returns it. Of a Dict, keys that the
        encoder does not read may be missing; its only key may be given alone.
      is_first: Whether episodes start anew, bool [batch]. By default the entry
        'is_first' of a Dict, and otherwise only those after `initial` do.

    Returns:
      The new carry, and the environment's action or a batch of them.

    Raises:
      UserError: The observation does not fit the space.
    """
    batch = len(carry['is_first'])
    keyed = isinstance(self.observation_space, gymnasium.spaces.Dict)
    bare = keyed and not isinstance(obs, Mapping)
    if bare:
      obs = {next(iter(self.obs_space)): obs}
    if is_first is None:
      is_first = obs.get('is_first', False) if keyed else False
    lead = self._conversion.batch_axes(obs, self.obs_space)
    arrays = self._conversion.observation(obs, lead, self.obs_space)
    if not lead:
      arrays = {k: x[None] for k, x in arrays.items()}
    given = {len(x) for x in arrays.values()}
    if given != {batch}:
      raise UserError(
        f'the carry is of {batch} environments, the observation of '
        f'{", ".join(map(str, sorted(given)))}: use policy.initial(N)'
      )
    first = carry['is_first'] | np.asarray(is_first, bool)
    inner, action = self._step(
      self._params,
      carry['agent'],
      {**arrays, 'is_first': first.reshape(batch)},
      carry['count'],
    )
    carry = {
      'agent': inner,
      'is_first': np.zeros(batch, bool),
      'count': carry['count'] + np.uint32(1),
    }
    chosen = {k: np.asarray(v if lead else v[0]) for k, v in action.items()}
    own = self._conversion.action(chosen, lead)
    if bare and isinstance(own, dict) and len(own) == 1:
      return carry, next(iter(own.values()))
    return carry, own

  def _step_fn(
    self, params: Tree, carry: Tree, obs: Tree, count: jax.Array
  ) -> tuple[Tree, Tree]:
    key = None
    if self._seed is not None:
      key = jax.random.fold_in(jax.random.key(self._seed), count)
    carry, action, _ = self._agent.policy(
      params, carry, obs, key, mode=self._mode
    )
    return carry, action


def trained_spaces(run: Tree) -> tuple[Spaces, Spaces]:
  """Returns the observations and actions of the run state of a checkpoint."""
  obs, act = (
    {
      key: Space(**{**fields, 'shape': tuple(fields['shape'])})
      for key, fields in run['spaces'][group].items()
    }
    for group in ('obs', 'act')
  )
  return obs, act


def _saved_conversion(run: Tree) -> Conversion | None:
  saved = run.get('conversion')
  return Conversion.from_json(saved) if saved else None


def _conversion_of(agent: Agent) -> Conversion:
  """Returns the conversion of an environment with the agent's own spaces."""
  obs, act = (
    gymnasium.spaces.Dict({k: _gym_space(v, bound) for k, v in spaces.items()})
    for spaces, bound in ((agent.obs_space, np.inf), (agent.act_space, 1.0))
  )
  return Conversion(obs, act, Rules(size=(0, 0)))


def _gym_space(space: Space, bound: float) -> gymnasium.Space:
  if space.is_image:
    return kinds.image_space(space.shape)
  if space.classes:
    return kinds.category_space(space.shape, space.classes)
  return gymnasium.spaces.Box(-bound, bound, space.shape, np.float32)


def _check(
  path: epath.PathLike, kind: str, given: Spaces, trained: Spaces
) -> None:
  for key in [*trained, *given]:
    if given.get(key) != trained.get(key):
      raise UserError(
        f"The {kind} '{key}' of the environment does not fit the agent of "
        f"'{path}': {_describe(given.get(key))} here, "
        f'{_describe(trained.get(key))} there; use the task and the '
        'environment options that it was trained with.'
      )


def _describe(space: Space | None) -> str:
  if space is None:
    return 'none'
  classes = f' of {space.classes} classes' if space.classes else ''
  return f'{space.dtype} {list(space.shape)}{classes}'
