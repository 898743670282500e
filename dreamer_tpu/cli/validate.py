"""Validates a configuration before JAX is imported.

Facts that depend on the devices or on the environment are checked where those
are known.
"""

import fnmatch
import functools
import math
import re
from collections.abc import Iterable
from math import inf
from typing import Any

from dreamer_tpu import image_size
from dreamer_tpu.config import flatten
from dreamer_tpu.errors import UserError, nearest

CHOICES: dict[str, tuple[Any, ...]] = {
  'script': ('train', 'train_eval', 'eval_only', 'parallel'),
  'policy.device': ('shared', 'reserved', 'cpu'),
  'policy.mode': ('mode', 'sample', 'random'),
  'policy.eval_mode': ('mode', 'sample', 'random'),
  'distributed.enabled': ('auto', 'on', 'off'),
  'dtype.compute': ('auto', 'bfloat16', 'float32'),
  'dtype.param': ('float32',),
  'agent.opt.schedule': ('constant', 'linear', 'cosine'),
  'metrics.outputs': ('log', 'jsonl', 'tensorboard', 'wandb'),
  'env.stepping': ('auto', 'workers', 'serial'),
  'env.atari.actions': ('all', 'needed'),
  'env.atari.pool': (1, 2),
}

# Minimum and maximum by key; `*` stands for any part of it. The first pattern
# that matches a key counts.
RANGES: dict[str, tuple[float, float]] = {
  'seed': (0, inf),
  'batch_size': (1, inf),
  'batch_length': (2, inf),
  'report_length': (2, inf),
  'consec_*': (1, inf),
  'replay_context': (1, inf),
  'run.steps': (0, inf),
  'run.updates': (0, inf),
  'run.train_ratio': (0, inf),
  'run.*envs': (1, inf),
  'run.eval_eps': (1, inf),
  'run.report_batches': (1, inf),
  'distributed.silence': (3, inf),
  'distributed.*timeout': (1, inf),
  'replay.*size': (1, inf),
  'replay.fracs.*': (0, 1),
  'replay.prio.maxfrac': (0, 1),
  'replay.prio.*': (0, inf),
  'replay.recexp': (0, inf),
  'policy.publish_every': (1, inf),
  'agent.*.unimix': (0, 1),
  'agent.*.rate': (0, 1),
  'agent.lam': (0, 1),
  'agent.imag_length': (1, inf),
  'agent.horizon': (1, inf),
  'agent.rssm.classes': (2, inf),
  'agent.rssm.prior_layers': (0, inf),
  'agent.rssm.free_nats': (0, inf),
  'agent.rssm.*': (1, inf),
  'agent.encoder.*': (1, inf),
  'agent.decoder.*': (1, inf),
  'agent.*.units': (1, inf),
  'agent.*.layers': (0, inf),
  'agent.policy.minstd': (0, inf),
  'agent.retnorm.limit': (0, inf),
  'agent.retnorm.*': (0, 100),
  'agent.opt.beta2': (0, 1),
  'agent.opt.momentum': (0, 1),
  'agent.opt.*': (0, inf),
  'checkpoint.keep': (1, inf),
  'checkpoint.timeout': (1, inf),
  'checkpoint.keep_*': (0, inf),
  'env.atari.sticky': (0, 1),
  'env.atari.noops': (0, inf),
  'env.dmc.camera': (-1, inf),
  'env.*.repeat': (1, inf),
  'env.*.length': (0, inf),
}


def validate(config: Any) -> None:
  """Checks a merged configuration.

  Args:
    config: A configuration with every key of `configs.base`.

  Raises:
    UserError: At the first mistake; names the key, its value and the way out.
  """
  _ranges(config)
  for key, choices in CHOICES.items():
    _choice(key, get(config, key), choices)
  _suite(config)
  _mesh(config.mesh)
  _agent(config.agent)
  _replay(config)
  _profile(config.run.profile)
  if config.script == 'eval_only' and not config.run.from_checkpoint:
    raise UserError(
      "script='eval_only' needs an agent; name the logdir of a run, or a "
      'public checkpoint, with --config.run.from_checkpoint=DIR.'
    )
  try:
    re.compile(config.run.from_checkpoint_regex)
  except re.error as error:
    raise UserError(
      f"run.from_checkpoint_regex='{config.run.from_checkpoint_regex}' is not "
      f'a regular expression: {error}.'
    ) from error


def get(config: Any, key: str) -> Any:
  """Returns the value of a dotted key, such as 'run.steps'."""
  return functools.reduce(getattr, key.split('.'), config)


def sequence_length(config: Any) -> int:
  """Returns the steps per replay sequence: enough for training and reports."""
  trained = config.batch_length * config.consec_train
  reported = config.report_length * config.consec_report
  return config.replay_context + max(trained, reported)


def matching(key: str) -> str | None:
  """Returns the pattern of `RANGES` that applies to `key`, if any."""
  matches = (pattern for pattern in RANGES if fnmatch.fnmatch(key, pattern))
  return next(matches, None)


def _ranges(config: Any) -> None:
  for key, value in flatten(config).items():
    if not isinstance(value, (int, float)):
      continue
    # This one is infinite by default: new sequences are sampled first.
    unbounded = (key, value) == ('replay.prio.initial', inf)
    if not math.isfinite(value) and not unbounded:
      raise UserError(f'{key}={value} must be a finite number.')
    low, high = RANGES.get(matching(key) or '', (-inf, inf))
    if not low <= value <= high:
      bounds = f'at least {low}' if high == inf else f'from {low} to {high}'
      raise UserError(f'{key}={value} must be {bounds}.')


def _choice(key: str, value: Any, choices: Iterable[Any]) -> None:
  for item in value if isinstance(value, tuple) else (value,):
    if item not in choices:
      names = sorted(map(str, choices))
      near = f"; did you mean '{nearest(str(item), names)}'?"
      raise UserError(
        f"{key}='{item}' is unknown{near if len(names) > 1 else '.'} "
        f'Choices: {", ".join(names)}'
      )


def _suite(config: Any) -> None:
  suite, _, name = config.task.partition('_')
  suites = sorted(k for k, v in config.env.items() if hasattr(v, 'items'))
  if suite not in suites:
    near = nearest(suite, suites)
    raise UserError(
      f"task='{config.task}' names the unknown suite '{suite}'; did you mean "
      f"'{near}_{name}'? Suites: {', '.join(suites)}"
    )
  if not name:
    raise UserError(
      f"task='{config.task}' has no task name; write SUITE_TASK, such as "
      "'atari_pong' or 'gym_CartPole-v1'."
    )
  group = config.env[suite]
  if suite == 'dmc' and not (group.image or group.proprio):
    raise UserError(
      'env.dmc.image=False with env.dmc.proprio=False leaves no observation; '
      'set one of them to True.'
    )
  if 'size' in group and group.get('image', True):
    stages = len(config.agent.encoder.mults)
    image_size.grid(f'env.{suite}.size={group.size}', group.size, stages)


def _profile(updates: str) -> None:
  match = re.fullmatch(r'(\d+):(\d+)', updates)
  if updates and not (match and int(match[1]) < int(match[2])):
    raise UserError(
      f"run.profile='{updates}' is not a range of updates, such as '100:120'."
    )


def _mesh(mesh: Any) -> None:
  sizes = {key: mesh[key] for key in ('data', 'fsdp', 'model')}
  for key, size in sizes.items():
    if size < 1 and size != -1:
      raise UserError(
        f'mesh.{key}={size} must be at least 1, or -1 for all remaining '
        'devices.'
      )
  if list(sizes.values()).count(-1) > 1:
    raise UserError(
      f'mesh={sizes}: only one axis can be -1 (all remaining devices).'
    )


def _agent(agent: Any) -> None:
  channels = agent.decoder.depth * agent.decoder.mults[-1]
  for key, width, blocks in (
    ('agent.rssm.deter', agent.rssm.deter, 'rssm'),
    ('agent.rssm.deter', agent.rssm.deter, 'decoder'),
    ('agent.decoder.depth * mults[-1]', channels, 'decoder'),
  ):
    if width % agent[blocks].blocks:
      raise UserError(
        f'{key}={width} must be a multiple of '
        f'agent.{blocks}.blocks={agent[blocks].blocks}.'
      )
  if len(agent.encoder.mults) != len(agent.decoder.mults):
    raise UserError(
      f'agent.encoder.mults={agent.encoder.mults} and agent.decoder.mults='
      f'{agent.decoder.mults} must have the same number of stages.'
    )
  for head in ('reward', 'value'):
    bins = agent[head].bins
    if bins < 3 or bins % 2 == 0:
      raise UserError(
        f'agent.{head}.bins={bins} must be odd and at least 3, so that one bin '
        'is exactly 0.'
      )
  for low, high in (
    ('policy.minstd', 'policy.maxstd'),
    ('retnorm.low', 'retnorm.high'),
  ):
    if not get(agent, low) < get(agent, high):
      raise UserError(
        f'agent.{low}={get(agent, low)} must be below '
        f'agent.{high}={get(agent, high)}.'
      )
  opt = agent.opt
  if opt.schedule != 'constant' and opt.decay_steps <= opt.warmup:
    raise UserError(
      f'agent.opt.decay_steps={opt.decay_steps} must be above '
      f"agent.opt.warmup={opt.warmup} for the schedule '{opt.schedule}'."
    )


def _replay(config: Any) -> None:
  """Checks that the replay can hold what the first batch needs.

  Training starts once the replay holds a batch of sequence starts. The last
  steps of each environment's stream do not start a sequence.
  """
  fracs = dict(config.replay.fracs)
  if not math.isclose(sum(fracs.values()), 1):
    raise UserError(
      f'replay.fracs={fracs} add up to {sum(fracs.values()):g}; shares of the '
      'samples must add up to 1.'
    )
  length = sequence_length(config)
  trained = config.batch_length * config.consec_train
  batch = config.batch_size * length
  starts = config.batch_size * trained + config.run.envs * (length - 1)
  if config.replay.size < max(batch, starts):
    raise UserError(
      f'replay.size={config.replay.size} is too small: batch_size='
      f'{config.batch_size} sequences of {length} steps from run.envs='
      f'{config.run.envs} need at least {max(batch, starts)}.'
    )
