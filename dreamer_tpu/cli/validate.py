"""Validates a configuration before JAX is imported.

Facts that depend on the devices or on the environment are checked where those
are known.
"""

import fnmatch
import json
import math
import os
import re
import shutil
from collections.abc import Iterable
from math import inf
from typing import Any

from dreamer_tpu import image_size
from dreamer_tpu.config import flatten, sequence_length
from dreamer_tpu.errors import UserError, nearest

CHOICES: dict[str, tuple[Any, ...]] = {
  'script': ('train', 'train_eval', 'eval_only', 'parallel'),
  'run.from_checkpoint_mismatch': ('error', 'fresh'),
  'policy.device': ('shared', 'reserved', 'cpu'),
  'policy.mode': ('mode', 'sample', 'random'),
  'policy.eval_mode': ('mode', 'sample', 'random'),
  'distributed.enabled': ('auto', 'on', 'off'),
  'dtype.compute': ('auto', 'bfloat16', 'float32'),
  'dtype.param': ('float32',),
  'agent.opt.schedule': ('constant', 'linear', 'cosine'),
  'metrics.outputs': ('log', 'jsonl', 'tensorboard', 'scope', 'wandb'),
  'env.stepping': ('auto', 'workers', 'serial'),
  'env.atari.actions': ('all', 'minimal'),
  'env.atari.lives': ('unused', 'discount', 'reset'),
  'env.atari.resize': ('opencv', 'pillow'),
  'env.atari.pool': (1, 2),
  'env.procgen.mode': ('easy', 'hard', 'extreme', 'memory', 'exploration'),
}

REGEXES = (
  'run.from_checkpoint_regex',
  'agent.encoder.keys',
  'agent.decoder.keys',
  'env.keys',
)

# Minimum and maximum by key; `*` stands for any part of it. The first pattern
# that matches counts. All other numbers are at least 0.
RANGES: dict[str, tuple[float, float]] = {
  'batch_size': (1, inf),
  'batch_length': (2, inf),
  'report_length': (2, inf),
  'consec_*': (1, inf),
  'replay_context': (1, inf),
  'run.*_every': (-inf, inf),
  'run.*envs': (1, inf),
  'run.eval_eps': (1, inf),
  'run.report_batches': (1, inf),
  'distributed.heartbeat_port': (0, 65535),
  'distributed.silence': (3, inf),
  'distributed.*timeout': (1, inf),
  'distributed.*process*': (-1, inf),
  'mesh.*': (-1, inf),
  'replay.*size': (1, inf),
  'replay.fracs.*': (0, 1),
  'replay.keep_imported': (0, 1),
  'replay.prio.maxfrac': (0, 1),
  'policy.publish_every': (1, inf),
  'agent.*.unimix': (0, 1),
  'agent.*.rate': (0, 1),
  'agent.lam': (0, 1),
  'agent.entropy': (-inf, inf),
  'agent.loss_scales.*': (-inf, inf),
  'agent.imag_length': (1, inf),
  'agent.horizon': (1, inf),
  'agent.rssm.classes': (2, inf),
  'agent.rssm.prior_layers': (0, inf),
  'agent.rssm.free_nats': (0, inf),
  'agent.rssm.*': (1, inf),
  'agent.encoder.*': (1, inf),
  'agent.decoder.*': (1, inf),
  'agent.*.units': (1, inf),
  'agent.retnorm.limit': (0, inf),
  'agent.retnorm.*': (0, 100),
  'agent.opt.beta2': (0, 1),
  'agent.opt.momentum': (0, 1),
  'checkpoint.keep': (1, inf),
  'checkpoint.timeout': (1, inf),
  'env.atari.sticky': (0, 1),
  'env.*.camera': (-1, inf),
  'env.*.repeat': (1, inf),
  'env.unroll': (1, inf),
}


def validate(config: Any) -> None:
  """Checks a merged configuration.

  Args:
    config: A configuration with every key of `configs.base`.

  Raises:
    UserError: At the first mistake; names the key, its value and the way out.
  """
  for key, value in flatten(config).items():
    if key in CHOICES:
      _check_choice(key, value, CHOICES[key])
    elif key in REGEXES:
      _check_regex(key, value)
    elif isinstance(value, (int, float)):
      _check_number(key, value)
  _check_suite(config)
  _check_mesh(config.mesh)
  _check_agent(config.agent)
  _check_replay(config)
  run = config.run
  _require(
    config.script != 'eval_only' or run.from_checkpoint,
    "script='eval_only' needs an agent; name the logdir of a run, or a public "
    'checkpoint, with --config.run.from_checkpoint=DIR.',
  )
  _require(
    config.jax.cache,
    "jax.cache='' names no folder; use 'auto', 'off' or a path.",
  )
  updates = re.fullmatch(r'(\d+):(\d+)', run.profile)
  _require(
    not run.profile or (updates and int(updates[1]) < int(updates[2])),
    f"run.profile='{run.profile}' is not a range of updates, such as "
    "'100:120'.",
  )


def pattern_of(key: str) -> str:
  """Returns the pattern of `RANGES` that applies to a key, '' if none does."""
  return next((x for x in RANGES if fnmatch.fnmatch(key, x)), '')


def _require(valid: Any, message: str) -> None:
  if not valid:
    raise UserError(message)


def _check_choice(key: str, value: Any, choices: Iterable[Any]) -> None:
  names = sorted(map(str, choices))
  for item in map(str, value if isinstance(value, tuple) else [value]):
    near = f"; did you mean '{nearest(item, names)}'?"
    _require(
      item in names,
      f"{key}='{item}' is unknown{near if len(names) > 1 else '.'} Choices: "
      f'{", ".join(names)}',
    )


def _check_regex(key: str, value: str) -> None:
  try:
    re.compile(value)
  except re.error as error:
    raise UserError(
      f"{key}='{value}' is not a regular expression: {error}."
    ) from error


def _check_number(key: str, value: float) -> None:
  # By default, new sequences have infinite priority.
  infinite = (key, value) == ('replay.prio.initial', inf)
  _require(
    math.isfinite(value) or infinite, f'{key}={value} must be a finite number.'
  )
  low, high = RANGES.get(pattern_of(key), (0, inf))
  bounds = f'at least {low}' if high == inf else f'from {low} to {high}'
  _require(low <= value <= high, f'{key}={value} must be {bounds}.')


def _check_suite(config: Any) -> None:
  suite, _, name = config.task.partition('_')
  suites = sorted(k for k, v in config.env.items() if hasattr(v, 'items'))
  _require(
    suite in suites,
    f"task='{config.task}' names the unknown suite '{suite}'; did you mean "
    f"'{nearest(suite, suites)}_{name}'? Suites: {', '.join(suites)}",
  )
  _require(
    name,
    f"task='{config.task}' has no task name; write SUITE_TASK, such as "
    "'atari_pong' or 'gym_CartPole-v1'.",
  )
  group = config.env[suite]
  _require(
    'proprio' not in group or group.image or group.proprio,
    f'env.{suite}.image=False with env.{suite}.proprio=False leaves no '
    'observation; set one of them to True.',
  )
  folder = group.get('folder', '')
  _require(
    '://' not in folder,
    f"env.{suite}.folder='{folder}' must be a local folder.",
  )
  if 'python' in group:
    _check_python(f'env.{suite}.python', group.python)
  if 'kwargs' in group:
    _check_json(f'env.{suite}.kwargs', group.kwargs)
  stages = len(config.agent.encoder.mults)
  size = group.get('size', ())
  if suite == 'gym':
    size = _check_free_size('env.gym.size', size)
  if any(size) and group.get('image', True):
    image_size.grid(f'env.{suite}.size={size}', size, stages)


def _check_python(key: str, path: str) -> None:
  _require(
    not path or shutil.which(os.path.expanduser(path)),
    f"{key}='{path}' is no program; name a Python, such as "
    "/path/to/venv/bin/python, or '' for the one that trains.",
  )


def _check_free_size(key: str, items: Any) -> tuple[int, ...]:
  """Returns a size of images, (0, 0) for 'auto'."""
  try:
    return image_size.parse(items) or (0, 0)
  except ValueError:
    value = ','.join(map(str, items))
    raise UserError(
      f"{key}='{value}' is not a height and a width, such as 64,64, nor auto."
    ) from None


def _check_json(key: str, text: str) -> None:
  try:
    valid = isinstance(json.loads(text), dict)
  except ValueError:
    valid = False
  _require(
    valid, f"{key}='{text}' is not a JSON object, such as '{{\"level\": 3}}'."
  )


def _check_mesh(mesh: Any) -> None:
  sizes = [mesh.data, mesh.fsdp, mesh.model]
  _require(
    0 not in sizes and sizes.count(-1) <= 1,
    f'mesh.data={mesh.data} mesh.fsdp={mesh.fsdp} mesh.model={mesh.model}: a '
    'size must be at least 1, and only one of them can be -1, which stands for '
    'all remaining devices.',
  )


def _check_agent(agent: Any) -> None:
  channels = agent.decoder.depth * agent.decoder.mults[-1]
  for key, width, part in (
    ('agent.rssm.deter', agent.rssm.deter, 'rssm'),
    ('agent.rssm.deter', agent.rssm.deter, 'decoder'),
    ('agent.decoder.depth * mults[-1]', channels, 'decoder'),
  ):
    blocks = agent[part].blocks
    _require(
      width % blocks == 0,
      f'{key}={width} must be a multiple of agent.{part}.blocks={blocks}.',
    )
  _require(
    len(agent.encoder.mults) == len(agent.decoder.mults),
    f'agent.encoder.mults={agent.encoder.mults} and agent.decoder.mults='
    f'{agent.decoder.mults} must have the same number of stages.',
  )
  for head in ('reward', 'value'):
    bins = agent[head].bins
    _require(
      bins >= 3 and bins % 2,
      f'agent.{head}.bins={bins} must be odd and at least 3, so that one bin '
      'is exactly 0.',
    )
  for group, low, high in (
    ('policy', 'minstd', 'maxstd'),
    ('retnorm', 'low', 'high'),
  ):
    values = agent[group]
    _require(
      values[low] < values[high],
      f'agent.{group}.{low}={values[low]} must be below agent.{group}.{high}='
      f'{values[high]}.',
    )
  opt = agent.opt
  _require(
    opt.schedule == 'constant' or opt.decay_steps > opt.warmup,
    f'agent.opt.decay_steps={opt.decay_steps} must be above agent.opt.warmup='
    f"{opt.warmup} for the schedule '{opt.schedule}'.",
  )


def _check_replay(config: Any) -> None:
  """Checks that the replay can hold what the first batch needs.

  Training starts once the replay holds a batch of sequence starts. The last
  steps of each environment's stream do not start a sequence.
  """
  fracs = dict(config.replay.fracs)
  _require(
    math.isclose(sum(fracs.values()), 1),
    f'replay.fracs={fracs} add up to {sum(fracs.values()):g}; these shares of '
    'the samples must add up to 1.',
  )
  length = sequence_length(config)
  trained = config.batch_length * config.consec_train
  batch = config.batch_size * length
  starts = config.batch_size * trained + config.run.envs * (length - 1)
  _require(
    config.replay.size >= max(batch, starts),
    f'replay.size={config.replay.size} is too small: batch_size='
    f'{config.batch_size} sequences of {length} steps from run.envs='
    f'{config.run.envs} need at least {max(batch, starts)}.',
  )
