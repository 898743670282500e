"""Acting with a trained agent, without anything that training needs."""

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
USED = ('encoder', 'rssm', 'policy')
KINDS = ('observation', 'action')


def load_policy(
  path: epath.PathLike, *, mode: bool = True, seed: int | None = 0
) -> 'Policy':
  """Loads the policy of a run.

  Reads the encoder, the RSSM and the policy; no optimizer, no replay.

  Args:
    path: A logdir, a checkpoints folder, a step folder, or a folder of the
      public implementation (agent.pkl, with config.yaml in it or above it).
    mode: Whether to take the policy's mode instead of a sample.
    seed: Of the samples; of the world model's state and, without `mode`, of
      actions. None takes modes of both, without any random number.

  Raises:
    UserError: There is no checkpoint, or it is damaged.
  """
  loaded = load(path)
  return Policy(loaded.agent, loaded.params, mode=mode, seed=seed)


class Loaded(NamedTuple):
  """An agent without a learner.

  Attributes:
    agent: Its functions.
    params: Of the policy, in the agent's dtype.
    step: Agent steps of its run.
    update: Updates of its run.
  """

  agent: Agent
  params: Tree
  step: int
  update: int


def load(
  path: epath.PathLike,
  dtype: jnp.dtype = jnp.float32,
  spaces: tuple[Spaces, Spaces] | None = None,
) -> Loaded:
  """Loads what acting needs: the encoder, the RSSM and the policy.

  Args:
    path: As in `load_policy`.
    dtype: In which it computes.
    spaces: Observations and actions of the environment that it shall act in;
      by default those that it was trained with.

  Raises:
    UserError: There is no checkpoint, it is damaged, or does not fit `spaces`.
  """
  folder = unpickle.find(path)
  if folder is None:
    run = layout.read_run(layout.find_step(path))
    config, known = agent_config.namespace(run['config']['agent']), _known(run)
    step, update = run['step'], run['update']
    for kind, theirs, ours in zip(KINDS, spaces or known, known, strict=True):
      _check(path, kind, theirs, ours)
  else:
    config, obs_space, act_space, counters = agent_config.describe(folder)
    known = obs_space, act_space
    step, update = counters.get('actions', 0), counters.get('updates', 0)
  agent = Agent(*(spaces or known), config, dtype=dtype)
  abstract = nnx.to_pure_dict(agent.variables)
  wanted = {name: abstract[name] for name in USED}
  params, _ = restore_partial(path, '.*', wanted)
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  return Loaded(agent, params, step, update)


class Policy:
  """A policy as a function of its carry.

  Attributes:
    obs_space: What it sees, by key.
    act_space: What it does, by key; floats are in [-1, 1].
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
    """The carry of environments that are about to start an episode."""
    return {
      'agent': self._agent.initial_carry(batch_size),
      'is_first': np.ones(batch_size, bool),
      'count': np.uint32(0),
    }

  def __call__(self, carry: Tree, obs: Any) -> tuple[Tree, Any]:
    """One step.

    Args:
      carry: From `initial` or the last call.
      obs: Arrays [batch, ...] by key, or one such array if the agent sees only
        one. The batch axis may be missing if the batch size is 1. 'is_first'
        [batch], where present, starts episodes anew; other keys are ignored.

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
    single = (
      all(x.shape == self.obs_space[k].shape for k, x in arrays.items())
      and len(carry['is_first']) == 1
    )
    if single:
      arrays = {k: x[None] for k, x in arrays.items()}
    first = carry['is_first'] | np.asarray(named.get('is_first', False))
    arrays['is_first'] = first.reshape(carry['is_first'].shape)
    inner, action = self._step(
      self._params, carry['agent'], arrays, carry['count']
    )
    carry = {
      'agent': inner,
      'is_first': np.zeros_like(carry['is_first']),
      'count': carry['count'] + np.uint32(1),
    }
    action = {k: np.asarray(v[0] if single else v) for k, v in action.items()}
    if not isinstance(obs, Mapping) and len(action) == 1:
      return carry, next(iter(action.values()))
    return carry, action

  def _step_fn(self, params, carry, obs, count):
    key = None
    if self._seed is not None:
      key = jax.random.fold_in(jax.random.key(self._seed), count)
    carry, action, _ = self._agent.policy(
      params, carry, obs, key, mode=self._mode
    )
    clip = lambda x: jnp.clip(x, -1, 1) if x.dtype == jnp.float32 else x
    return carry, jax.tree.map(clip, action)


def _known(run: Tree) -> tuple[Spaces, Spaces]:
  """Observations and actions that a run was trained with."""
  obs, act = (
    {
      key: Space(**{**fields, 'shape': tuple(fields['shape'])})
      for key, fields in run['spaces'][group].items()
    }
    for group in ('obs', 'act')
  )
  return obs, act


def _check(path: epath.PathLike, kind: str, given: Spaces, known: Spaces):
  for key in [*known, *given]:
    if given.get(key) != known.get(key):
      raise UserError(
        f"The {kind} '{key}' of the environment does not fit the agent of "
        f"'{path}': {_show(given.get(key))} here, {_show(known.get(key))} "
        'there; choose the task and the options of its environment as they '
        'were.'
      )


def _show(space: Space | None) -> str:
  if space is None:
    return 'none'
  classes = f' of {space.classes} classes' if space.classes else ''
  return f'{space.dtype} {list(space.shape)}{classes}'
