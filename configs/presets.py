"""Presets: named changes to a configuration, applied in the order given."""

import difflib
from collections.abc import Callable, Mapping

import ml_collections

from configs import sizes

Preset = Callable[[ml_collections.ConfigDict], None]


def apply(
  config: ml_collections.ConfigDict,
  names: str,
  extra: Mapping[str, Preset] | None = None,
) -> ml_collections.ConfigDict:
  """Changes `config` by the presets in `names`, the last one winning.

  Args:
    config: a suite's configuration; changed in place.
    names: presets separated by commas, such as 'size400m,debug'; may be empty.
    extra: presets that only this suite has.

  Returns:
    The same configuration.

  Raises:
    LookupError: a preset is unknown; the message names the nearest one.
  """
  known = {**COMMON, **(extra or {})}
  for name in filter(None, (name.strip() for name in names.split(','))):
    if name not in known:
      (near,) = difflib.get_close_matches(name, known, n=1, cutoff=0)
      raise LookupError(
        f"unknown preset '{name}'; did you mean '{near}'? "
        f'Presets: {", ".join(known)}'
      )
    known[name](config)
  return config


def debug(config: ml_collections.ConfigDict) -> None:
  """Every size reduced and every interval short: any suite runs in seconds.

  The run is 1,000 steps long. The batch divides over eight devices, and the
  channels leave an image decoder for 64x64 and 96x96 valid.
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


COMMON: dict[str, Preset] = {**sizes.PRESETS, 'debug': debug}
