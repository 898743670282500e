r"""Brings recorded episodes into a logdir, and takes those of a run along.

Usage:
  python -m dreamer_tpu.tools.data import SOURCE... --logdir=DIR
    [--config=configs/SUITE.py:PRESETS] [--config.KEY=VALUE ...]
  python -m dreamer_tpu.tools.data export LOGDIR --out=OUT
    [--replay=train|eval]

  SOURCE    minari:ID, a folder of a Minari dataset, rlds:NAME, a folder of
            *.npz episodes, a replay folder of the public implementation, or
            a logdir.
  --logdir  Directory that main.py resumes from, with the same configuration.
  OUT       minari:ID, or a new folder for *.npz episodes.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from absl import logging

from dreamer_tpu.cli import flags, logdirs, platform
from dreamer_tpu.errors import UserError, explain


def main(argv: Sequence[str] | None = None) -> int:
  """Imports or exports. Returns: the exit code."""
  argv = sys.argv[1:] if argv is None else argv
  logging.set_verbosity(logging.WARNING)
  try:
    run(argv)
  except KeyboardInterrupt:
    print('error: stopped; nothing is written.', file=sys.stderr)
    return 1
  except Exception as error:
    lines, text = explain(error)
    print(*filter(None, [lines]), f'error: {text}', sep='\n', file=sys.stderr)
    return 1
  return 0


def run(argv: Sequence[str]) -> None:
  """Imports or exports.

  Raises:
    UserError: The command line has a mistake, or the data cannot be read.
  """
  config, rest = flags.parse_config(argv)
  parser = argparse.ArgumentParser(
    prog='python -m dreamer_tpu.tools.data',
    usage=(__doc__ or '').split('\n\n')[1].removeprefix('Usage:\n  '),
    allow_abbrev=False,
  )
  commands = parser.add_subparsers(dest='command', required=True)
  importer = commands.add_parser('import')
  importer.add_argument('sources', nargs='+', metavar='SOURCE')
  importer.add_argument('--logdir', required=True)
  exporter = commands.add_parser('export')
  exporter.add_argument('logdir', metavar='LOGDIR')
  exporter.add_argument('--out', required=True)
  exporter.add_argument('--replay', choices=('train', 'eval'), default='train')
  args = parser.parse_args(rest)
  platform.use_cache(config.jax.cache)
  if args.command == 'import':
    importing = importlib.import_module('dreamer_tpu.tools.data.importing')
    importing.run(config, logdirs.resolve(args.logdir), args.sources)
  elif args.command == 'export':
    exporting = importlib.import_module('dreamer_tpu.tools.data.exporting')
    exporting.run(args.logdir, args.out, evaluate=args.replay == 'eval')
  else:
    raise UserError('choose import or export')


if __name__ == '__main__':
  platform.choose()
  platform.use_huge_pages()  # As main.py does.
  sys.exit(main())
