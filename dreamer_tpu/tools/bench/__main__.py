"""Benchmarks one part of a run.

python -m dreamer_tpu.tools.bench
  learner|parts|policy|actor|replay|checkpoint|startup|end_to_end
  [--config=configs/SUITE.py:PRESETS] [--config.KEY=VALUE ...]
  [--repeat=N] [--json]

Prints a table, or JSON lines. Times are medians of `repeat` warm runs. A unit
is the time of a float32 product of two 1024x1024 matrices, measured in turns
with the benchmark: figures in units are comparable across machines and load.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from absl import logging

from dreamer_tpu.cli import flags, platform
from dreamer_tpu.errors import UserError

# Imported on demand: the parts of `device` and `parts` need only JAX, neither
# environments nor TensorBoard.
MODULES = {
  'learner': 'device',
  'parts': 'parts',
  'policy': 'device',
  'actor': 'host',
  'replay': 'host',
  'checkpoint': 'host',
  'startup': 'runs',
  'end_to_end': 'runs',
}
Rows = list[dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the measurements. Returns: the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m dreamer_tpu.tools.bench',
    usage=(__doc__ or '').split('\n\n')[1].replace('\n ', ''),
    description=(__doc__ or '').split('\n\n')[0],
    allow_abbrev=False,
  )
  parser.add_argument('part', choices=MODULES)
  parser.add_argument(
    '--repeat', type=int, default=20, help='number of timed runs'
  )
  parser.add_argument('--json', action='store_true', help='print JSON lines')
  logging.set_verbosity(logging.ERROR)
  try:
    config, rest = flags.parse_config(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(rest)
    if args.repeat < 1:
      raise UserError(f'--repeat={args.repeat} must be at least 1.')
    module = importlib.import_module(
      f'dreamer_tpu.tools.bench.{MODULES[args.part]}'
    )
    rows = getattr(module, args.part)(config, args.repeat)
  except UserError as error:
    print('error:', *str(error).split(), file=sys.stderr)
    return 1
  print('\n'.join(map(json.dumps, rows)) if args.json else table(rows))
  return 0


def table(rows: Rows) -> str:
  """Formats rows as columns, or as lines if they outnumber the figures."""
  names = list(dict.fromkeys(name for row in rows for name in row))
  lines = [[name, *(_text(row.get(name)) for row in rows)] for name in names]
  if len(rows) > len(names):
    lines = [list(line) for line in zip(*lines, strict=True)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(x.ljust(n) for x, n in zip(line, widths, strict=True)).rstrip()
    for line in lines
  )


def _text(value: Any) -> str:
  if value is None:
    return '-'
  return f'{value:,.4g}' if isinstance(value, float) else str(value)


if __name__ == '__main__':
  platform.choose()
  platform.use_huge_pages()  # As main.py does.
  sys.exit(main())
