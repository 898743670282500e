"""Lists the suites, their tasks, and how to install those that are missing.

python -m dreamer_tpu.tools.suites [--suite=NAME | --benchmark=NAME]
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

from dreamer_tpu.cli import flags
from dreamer_tpu.envs import registry
from dreamer_tpu.errors import UserError

HEADER = 'suite', 'tasks', 'such as', 'installed'
EXAMPLES = 45  # Characters.


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the listing. Returns: the exit code."""
  benchmarks = {
    name: [f'{prefix}_{task}' for task in tasks]
    for prefix in registry.BUILTIN
    for name, tasks in registry.suite_of(prefix).benchmarks.items()
  }
  parser = argparse.ArgumentParser(
    prog='python -m dreamer_tpu.tools.suites', description=__doc__
  )
  parser.add_argument(
    '--suite', choices=registry.BUILTIN, help='list all tasks of this suite'
  )
  parser.add_argument(
    '--benchmark', choices=benchmarks, help='list the tasks of this benchmark'
  )
  args = parser.parse_args(argv)
  config = flags.load(flags.DEFAULT_CONFIG).env
  try:
    if args.benchmark:
      print('\n'.join(benchmarks[args.benchmark]))
    elif args.suite:
      print('\n'.join(registry.tasks(args.suite, config)))
    else:
      print('\n'.join(overview(config)))
  except UserError as error:
    print(f'suite {args.suite}: {error}', file=sys.stderr)
    return 1
  return 0


def overview(config: Any) -> Iterator[str]:
  """Yields the lines of a table, with a suite each; makes no environment.

  Args:
    config: Group `env` of the configuration.
  """
  suites = {prefix: registry.suite_of(prefix) for prefix in registry.BUILTIN}
  # Without a package first: packages add tasks to those of Gymnasium.
  order = sorted(suites, key=lambda prefix: bool(suites[prefix].package))
  rows = [HEADER, *(_row(x, suites[x], config) for x in order)]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    cells = [x.ljust(n) for x, n in zip(row, widths, strict=True)]
    yield '  '.join(cells).rstrip()


def _row(
  prefix: str, suite: registry.Suite, config: Any
) -> tuple[str, str, str, str]:
  """Returns the cells of a suite."""
  found = version(suite.package) if suite.package else 'comes along'
  installed = found or f'missing: {suite.install}'
  try:
    tasks = registry.tasks(prefix, config)
  except UserError as error:  # Its package, or the task, knows the names.
    return prefix, '', str(error) if found else '', installed
  both = ', '.join(tasks[:2])
  examples = both if len(both) <= EXAMPLES else tasks[0]
  return prefix, f'{len(tasks):,}', examples, installed


def version(package: str) -> str | None:
  """Returns name and version of a package, None if it is missing."""
  try:
    return f'{package} {metadata.version(package)}'
  except metadata.PackageNotFoundError:
    return None


if __name__ == '__main__':
  sys.exit(main())
