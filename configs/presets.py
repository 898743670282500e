"""Presets: named changes to a configuration, applied in the order given."""

from collections.abc import Callable

import ml_collections

from configs import sizes

Preset = Callable[[ml_collections.ConfigDict], None]


def apply(
  config: ml_collections.ConfigDict, names: str
) -> ml_collections.ConfigDict:
  """Changes `config` by the presets in `names`; the last one wins.

  Args:
    config: A suite's configuration; changed in place.
    names: Presets separated by commas, such as 'size400m,debug'; may be empty.

  Returns:
    The same configuration.

  Raises:
    LookupError: A preset is unknown; the arguments are its name and all
      presets.
  """
  for name in filter(None, (name.strip() for name in names.split(','))):
    if name not in PRESETS:
      raise LookupError(name, *PRESETS)
    PRESETS[name](config)
  return config


def debug(config: ml_collections.ConfigDict) -> None:
  """Shrinks all sizes and intervals, so that any suite runs in seconds.

  The run has 1,000 steps. The batch divides over eight devices.
  """
  config.update(
    dict(
      batch_size=8,
      batch_length=8,
      report_length=8,
      run=dict(
        steps=1000,
        train_ratio=8.0,
        envs=2,
        eval_envs=2,
        eval_length=2000,
        eval_eps=3,
        log_every=2.0,
        report_every=5.0,
        save_every=5.0,
      ),
      replay=dict(size=10_000, chunksize=64),
      agent=dict(
        rssm=dict(deter=32, hidden=16, stoch=4, classes=4, blocks=4),
        encoder=dict(depth=2, units=16, layers=1),
        decoder=dict(depth=2, units=16, layers=1, blocks=4),
        reward=dict(units=16),
        cont=dict(units=16),
        policy=dict(units=16, layers=1),
        value=dict(units=16, layers=1),
        imag_length=5,
      ),
      dtype=dict(compute='float32'),
    )
  )


PRESETS: dict[str, Preset] = {**sizes.PRESETS, 'debug': debug}
