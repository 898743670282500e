"""Finds the values of a configuration that no run could use.

Plain Python, so that a mistake is answered at once, before JAX is imported.
What depends on the devices or on the environment is checked where they are.
"""

import difflib
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dreamer_tpu.errors import UserError

SCRIPTS = ('train', 'train_eval', 'eval_only', 'parallel')

CHOICES = {
  'script': SCRIPTS,
  'policy.device': ('shared', 'reserved', 'cpu'),
  'policy.mode': ('mode', 'sample', 'random'),
  'policy.eval_mode': ('mode', 'sample', 'random'),
  'distributed.enabled': ('auto', 'on', 'off'),
  'dtype.compute': ('auto', 'bfloat16', 'float32'),
  'dtype.param': ('float32',),
  'agent.opt.schedule': ('constant', 'linear', 'cosine'),
  'env.stepping': ('auto', 'workers', 'serial'),
  'env.atari.actions': ('all', 'needed'),
}

OUTPUTS = ('log', 'jsonl', 'tensorboard', 'wandb')

# The smallest valid value of a number.
MINIMUM: dict[str, float] = {
  'seed': 0,
  'batch_size': 1,
  'batch_length': 2,
  'report_length': 2,
  'consec_train': 1,
  'consec_report': 1,
  'replay_context': 1,
  'run.steps': 0,
  'run.updates': 0,
  'run.train_ratio': 0,
  'run.envs': 1,
  'run.eval_envs': 1,
  'run.eval_eps': 1,
  'run.report_batches': 1,
  'distributed.timeout': 1,
  'distributed.silence': 3,
  'distributed.env_timeout': 1,
  'replay.size': 1,
  'replay.chunksize': 1,
  'replay.prio.exponent': 0,
  'replay.prio.initial': 0,
  'replay.recexp': 0,
  'policy.publish_every': 1,
  'agent.rssm.deter': 1,
  'agent.rssm.hidden': 1,
  'agent.rssm.stoch': 1,
  'agent.rssm.classes': 2,
  'agent.rssm.blocks': 1,
  'agent.rssm.dyn_layers': 1,
  'agent.rssm.prior_layers': 0,
  'agent.rssm.post_layers': 1,
  'agent.rssm.free_nats': 0,
  'agent.encoder.depth': 1,
  'agent.encoder.kernel': 1,
  'agent.encoder.units': 1,
  'agent.encoder.layers': 1,
  'agent.decoder.depth': 1,
  'agent.decoder.kernel': 1,
  'agent.decoder.units': 1,
  'agent.decoder.layers': 1,
  'agent.decoder.blocks': 1,
  'agent.reward.units': 1,
  'agent.reward.layers': 0,
  'agent.cont.units': 1,
  'agent.cont.layers': 0,
  'agent.policy.units': 1,
  'agent.policy.layers': 0,
  'agent.policy.minstd': 0,
  'agent.value.units': 1,
  'agent.value.layers': 0,
  'agent.imag_length': 1,
  'agent.horizon': 1,
  'agent.retnorm.limit': 0,
  'agent.retnorm.low': 0,
  'agent.opt.lr': 0,
  'agent.opt.agc': 0,
  'agent.opt.eps': 0,
  'agent.opt.warmup': 0,
  'agent.opt.weight_decay': 0,
  'checkpoint.keep': 1,
  'checkpoint.keep_every': 0,
  'checkpoint.keep_best': 0,
  'checkpoint.timeout': 1,
  'env.atari.repeat': 1,
  'env.atari.noops': 0,
  'env.atari.pool': 1,
  'env.atari.length': 0,
  'env.dmc.repeat': 1,
  'env.dmc.camera': -1,
  'env.crafter.length': 0,
  'env.gym.repeat': 1,
  'env.gym.length': 0,
}

# Probabilities and rates.
FRACTIONS = (
  'agent.rssm.unimix',
  'agent.policy.unimix',
  'agent.slow_value.rate',
  'agent.lam',
  'agent.retnorm.rate',
  'agent.opt.beta2',
  'agent.opt.momentum',
  'env.atari.sticky',
  'replay.fracs.uniform',
  'replay.fracs.priority',
  'replay.fracs.recency',
  'replay.prio.maxfrac',
)


def validate(config: Any) -> None:
  """Checks a merged configuration.

  Args:
    config: a configuration with every key of `configs.base`.

  Raises:
    UserError: for the first mistake; names the key, its value and the way out.
  """
  _numbers(config)
  for key, choices in CHOICES.items():
    check_choice(key, get(config, key), choices)
  for name in config.metrics.outputs:
    check_choice('metrics.outputs', name, OUTPUTS)
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
  """The value of a dotted key, such as 'run.steps'."""
  return functools.reduce(getattr, key.split('.'), config)


def flatten(config: Mapping, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields (dotted key, value) for everything that is not a group."""
  for key, value in config.items():
    if hasattr(value, 'items'):
      yield from flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def sequence_length(config: Any) -> int:
  """Steps per sequence in the replay: enough to train and to report on."""
  trained = config.batch_length * config.consec_train
  reported = config.report_length * config.consec_report
  return config.replay_context + max(trained, reported)


def nearest(name: str, known: Iterable[str]) -> str:
  """The known name most like `name`; of dotted ones the last part counts too.

  Args:
    name: what was written.
    known: at least one name.
  """

  def similarity(other: str) -> float:
    pairs = [(name, other), (name.split('.')[-1], other.split('.')[-1])]
    return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

  return max(known, key=similarity)


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
  """Raises UserError unless `value` is one of `choices`."""
  choices = sorted(choices)
  if value not in choices:
    near = f"; did you mean '{nearest(value, choices)}'?"
    raise UserError(
      f"{key}='{value}' is unknown{near if len(choices) > 1 else '.'} "
      f'Choices: {", ".join(choices)}'
    )


def _numbers(config: Any) -> None:
  for key, value in flatten(config):
    finite = not isinstance(value, float) or math.isfinite(value)
    if not finite and (key, value) != ('replay.prio.initial', math.inf):
      raise UserError(f'{key}={value} must be a finite number.')
  for key, least in MINIMUM.items():
    if get(config, key) < least:
      raise UserError(f'{key}={get(config, key)} must be at least {least}.')
  for key in FRACTIONS:
    if not 0 <= get(config, key) <= 1:
      raise UserError(f'{key}={get(config, key)} must be from 0 to 1.')


def _suite(config: Any) -> None:
  suite, _, name = config.task.partition('_')
  suites = sorted(k for k, v in config.env.items() if hasattr(v, 'items'))
  if suite not in suites:
    near = nearest(suite, suites)
    raise UserError(
      f"task='{config.task}' is of an unknown suite '{suite}'; did you mean "
      f"'{near}_{name}'? Suites: {', '.join(suites)}"
    )
  if not name:
    raise UserError(
      f"task='{config.task}' names no task; write SUITE_TASK, such as "
      "'atari_pong' or 'gym_CartPole-v1'."
    )
  group = config.env[suite]
  if suite == 'dmc' and not (group.image or group.proprio):
    raise UserError(
      'env.dmc.image=False with env.dmc.proprio=False leaves no observation; '
      'set one of them to True.'
    )
  if 'size' in group and group.get('image', True):
    _image(f'env.{suite}.size', group.size, len(config.agent.encoder.mults))


def _image(key: str, size: tuple[int, ...], stages: int) -> None:
  factor = 2**stages
  fitting = [min(max(round(x / factor), 3), 16) * factor for x in size]
  if len(size) != 2 or list(size) != fitting:
    near = tuple((fitting * 2)[:2]) or (4 * factor, 4 * factor)
    raise UserError(
      f'{key}={size} does not suit the encoder: height and width must be '
      f'multiples of {factor} from {3 * factor} to {16 * factor}; the nearest '
      f'is {near}.'
    )


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
        f'mesh.{key}={size} must be at least 1, or -1 for the devices that are '
        'left.'
      )
  if list(sizes.values()).count(-1) > 1:
    raise UserError(
      f'mesh={sizes}: only one axis can be -1, the devices that are left.'
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
      f'{agent.decoder.mults} must have as many stages as each other.'
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
  if agent.retnorm.high > 100:
    raise UserError(
      f'agent.retnorm.high={agent.retnorm.high} is a percentile; it must be at '
      'most 100.'
    )
  opt = agent.opt
  if opt.schedule != 'constant' and opt.decay_steps <= opt.warmup:
    raise UserError(
      f'agent.opt.decay_steps={opt.decay_steps} must be above '
      f"agent.opt.warmup={opt.warmup} for the schedule '{opt.schedule}'."
    )


def _replay(config: Any) -> None:
  """A first batch must fit, and training must be able to begin.

  It begins once a batch's worth of sequence starts is there; the last steps of
  every environment's stream start no sequence.
  """
  fracs = dict(config.replay.fracs)
  if not math.isclose(sum(fracs.values()), 1):
    raise UserError(
      f'replay.fracs={fracs} add up to {sum(fracs.values()):g}; they are shares '
      'of the samples and must add up to 1.'
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
