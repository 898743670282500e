"""Acts with a trained agent, without anything that only training needs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from dreamer_tpu.agent import Agent, Space
from dreamer_tpu.checkpoint import layout
from dreamer_tpu.checkpoint.dreamerv3 import agent_config, unpickle
from dreamer_tpu.checkpoint.partial import restore_partial
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
  loaded = load_agent(path)
  return Policy(loaded.agent, loaded.params, mode=mode, seed=seed)


class LoadedAgent(NamedTuple):
  """An agent that can act but not train.

  Attributes:
    agent: The agent's functions.
    params: Parameters of encoder, RSSM and policy, in the agent's dtype.
    step: Agent steps of its run.
    update: Updates of its run.
  """

  agent: Agent
  params: Tree
  step: int
  update: int


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
  folder = unpickle.find(path)
  if folder is None:
    run = layout.read_run(layout.find_step(path))
    config = agent_config.namespace(run['config']['agent'])
    trained = _spaces(run, 'obs'), _spaces(run, 'act')
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
  params, _ = restore_partial(path, '.*', {k: abstract[k] for k in MODULES})
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  return LoadedAgent(agent, params, step, update)


class Policy:
  """A policy as a function of its carry.

  Attributes:
    obs_space: Spaces by observation key.
    act_space: Spaces by action key; floats are in [-1, 1].
  """

  def __init__(
    self, agent: Agent, params: Tree, *, mode: bool, seed: int | None
  ):
    self.obs_space = agent.obs_space
    self.act_space = agent.act_space
    self._agent = agent
    self._params = params
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

  def __call__(self, carry: Tree, obs: Any) -> tuple[Tree, Any]:
    """Chooses actions.

    Args:
      carry: Carry from `initial` or the previous call.
      obs: Arrays [batch, ...] by key, or the array of the agent's only key.
        The batch axis may be missing if the batch size is 1. 'is_first'
        [batch], if present, starts new episodes; other keys are ignored.

    Returns:
      The new carry, and actions in the form of the observations: by key or
      one array, with or without the batch axis.
    """
    named = (
      obs if isinstance(obs, Mapping) else {next(iter(self.obs_space)): obs}
    )
    arrays = {
      k: np.asarray(named[k], v.dtype) for k, v in self.obs_space.items()
    }
    batch = len(carry['is_first'])
    single = batch == 1 and all(
      x.shape == self.obs_space[k].shape for k, x in arrays.items()
    )
    if single:
      arrays = {k: x[None] for k, x in arrays.items()}
    first = carry['is_first'] | np.asarray(named.get('is_first', False))
    arrays['is_first'] = first.reshape(batch)
    inner, action = self._step(
      self._params, carry['agent'], arrays, carry['count']
    )
    carry = {
      'agent': inner,
      'is_first': np.zeros(batch, bool),
      'count': carry['count'] + np.uint32(1),
    }
    action = {k: np.asarray(v[0] if single else v) for k, v in action.items()}
    if not isinstance(obs, Mapping) and len(action) == 1:
      return carry, next(iter(action.values()))
    return carry, action

  def _step_fn(
    self, params: Tree, carry: Tree, obs: Tree, count: jax.Array
  ) -> tuple[Tree, Tree]:
    key = None
    if self._seed is not None:
      key = jax.random.fold_in(jax.random.key(self._seed), count)
    carry, action, _ = self._agent.policy(
      params, carry, obs, key, mode=self._mode
    )
    clip = lambda x: jnp.clip(x, -1, 1) if x.dtype == jnp.float32 else x
    return carry, jax.tree.map(clip, action)


def _spaces(run: Tree, group: str) -> Spaces:
  """Returns the spaces that a run was trained with."""
  return {
    key: Space(**{**fields, 'shape': tuple(fields['shape'])})
    for key, fields in run['spaces'][group].items()
  }


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
