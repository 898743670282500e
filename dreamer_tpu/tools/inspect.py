"""Lists the contents of a checkpoint without loading it.

python -m dreamer_tpu.tools.inspect LOGDIR [--regex='rssm/.*']
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from dreamer_tpu.checkpoint import layout
from dreamer_tpu.checkpoint.dreamerv3 import unpickle
from dreamer_tpu.cli import platform
from dreamer_tpu.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the listing. Returns: the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m dreamer_tpu.tools.inspect', description=__doc__
  )
  parser.add_argument(
    'checkpoint',
    help='logdir, checkpoints/, step folder or dreamerv3 checkpoint',
  )
  parser.add_argument(
    '--regex', default='', help='list only arrays whose names match anywhere'
  )
  args = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)
  platform.choose()
  try:
    for line in report(args.checkpoint, args.regex):
      print(line)
  except UserError as error:
    print(error, file=sys.stderr)
    return 1
  return 0


def report(path: epath.PathLike, regex: str = '') -> Iterator[str]:
  """Yields the lines of the listing.

  Args:
    path: A logdir, a checkpoints folder, a step folder, or a checkpoint of the
      public implementation.
    regex: Lists only arrays whose names match anywhere.

  Raises:
    UserError: There is no checkpoint, or the pattern is invalid.
  """
  try:
    pattern = re.compile(regex)
  except re.error as error:
    raise UserError(
      f"--regex='{regex}' is not a regular expression: {error}."
    ) from error
  folder = unpickle.find(path)
  if folder is not None:
    yield from _report_public(folder, pattern)
    return
  yield from layout.read_newest(
    path, lambda step: list(_report_step(step, pattern))
  )


def _report_step(folder: epath.Path, pattern: re.Pattern) -> Iterator[str]:
  steps = layout.steps(folder.parent)
  yield f'checkpoint {folder}'
  yield f'steps {", ".join(map(str, steps)) or folder.name}'
  agents = [x for x in steps if not layout.has_replay(folder.parent / str(x))]
  if agents:
    yield f'without replay {", ".join(map(str, agents))}'
  if corrupt := layout.quarantined(folder.parent):
    yield f'corrupt {", ".join(x.name for x in corrupt)}'
  if (score := layout.read_score(folder)) is not None:
    yield f'score {score:g}'
  items = sorted(x.name for x in folder.iterdir() if x.is_dir())
  yield f'items {", ".join(items)}'
  yield from _arrays(layout.flatten(layout.read_shapes(folder)), pattern)
  for key, value in layout.read_run(folder).items():
    yield f'run {key} {_brief(value)}'
  for shard, manifest in layout.read_manifests(folder).items():
    yield f'replay shard {shard} {_brief(manifest)}'


def _report_public(folder: epath.Path, pattern: re.Pattern) -> Iterator[str]:
  checkpoint = unpickle.load(folder)
  yield f'public checkpoint {folder}'
  for key, value in checkpoint.counters.items():
    yield f'counter {key} {value}'
  yield f'left out {len(checkpoint.skipped)} arrays of its optimizer'
  yield from _arrays(checkpoint.params, pattern)


def _arrays(arrays: Mapping[str, Any], pattern: re.Pattern) -> Iterator[str]:
  chosen = {k: v for k, v in arrays.items() if pattern.search(k)}
  width = max(map(len, chosen), default=0)
  for name, array in chosen.items():
    yield f'{name:{width}}  {array.dtype!s:8}  {list(array.shape)}'
  count = sum(math.prod(x.shape) for x in chosen.values())
  size = sum(
    math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in chosen.values()
  )
  yield f'arrays {len(chosen)}, elements {count:,}, bytes {size:,}'


def _brief(value: Any, limit: int = 160) -> str:
  text = json.dumps(value)
  if len(text) <= limit:
    return text
  return f'{text[:limit]}... ({len(text):,} characters)'


if __name__ == '__main__':
  sys.exit(main())
