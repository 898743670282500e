"""Plans a run on a TPU topology, without a TPU: what fits, and what bounds it.

python -m dreamer_tpu.tools.plan --config=configs/atari.py:size200m
  --topology=v5e:4x4 [--chips=N] [--suggest] [--json] [--config.KEY=VALUE ...]

Exit codes: 0 it fits; 2 it does not; 1 an error, with the reason in one line.
"""

import argparse
import collections
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from absl import logging

from dreamer_tpu.cli import flags
from dreamer_tpu.errors import UserError

if TYPE_CHECKING:
  from dreamer_tpu.tools.plan.step import Plan

GIB = 2**30
NO_FIT = 2


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the plan; see the exit codes above."""
  parser = argparse.ArgumentParser(
    prog='python -m dreamer_tpu.tools.plan',
    usage=(__doc__ or '').split('\n\n')[1].replace('\n ', ''),
    description=(__doc__ or '').split('\n\n')[0],
    allow_abbrev=False,
  )
  parser.add_argument(
    '--topology', required=True, help='such as v5e:4x4 or v5p:2x2x2'
  )
  parser.add_argument(
    '--chips', type=int, help='plan for the first so many chips of it only'
  )
  parser.add_argument(
    '--suggest', action='store_true', help='search the mesh; mesh.* is ignored'
  )
  parser.add_argument('--json', action='store_true', help='for machines')
  logging.set_verbosity(logging.ERROR)
  try:
    config, rest = flags.parse_config(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(rest)
    plan = _make(config, args)
  except UserError as error:
    print('error:', *str(error).split(), file=sys.stderr)
    return 1
  print(json.dumps(as_json(plan)) if args.json else '\n'.join(lines(plan)))
  return 0 if plan.fits else NO_FIT


def _make(config: Any, args: argparse.Namespace) -> 'Plan':
  # The chips are only compiled for; JAX itself needs none.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  from dreamer_tpu.tools.plan import meshes, step

  agent = step.make_agent(config)
  make = meshes.suggest if args.suggest else step.make
  return make(config, agent, args.topology, args.chips)


def as_json(plan: 'Plan') -> dict[str, Any]:
  """JSON values of a plan."""
  result = dataclasses.asdict(plan)
  if plan.floors:
    result['floors']['bound'] = plan.floors.bound
  return result


def lines(plan: 'Plan') -> Iterator[str]:
  """The plan as a person reads it."""
  mesh = ' '.join(f'{k}={v}' for k, v in plan.mesh.items())
  yield (
    f'{plan.topology}, {plan.chips} chips on {plan.hosts} hosts, mesh {mesh}, '
    f'batch {plan.batch_size} x {plan.batch_length}'
  )
  yield f'parameters   {plan.parameters:,}'
  over = (plan.peak - plan.hbm) / GIB
  yield (
    f'memory       {plan.peak / GIB:.2f} of {plan.hbm / GIB:.2f} GiB per chip '
    f'(arguments {plan.arguments / GIB:.2f}, temporaries '
    f'{plan.temporaries / GIB:.2f}): '
    + ('fits' if plan.fits else f'does not fit by {over:.2f} GiB')
  )
  yield f'compiling    {plan.compile_s:.0f} s'
  yield f'work         {plan.flops / 1e12:.3g} TFLOP per update'
  yield from _collectives(plan)
  if plan.floors:
    x = plan.floors
    yield (
      f'floors       compute {1e3 * x.compute:.3g} ms, memory '
      f'{1e3 * x.memory:.3g} ms, network {1e3 * x.network:.3g} ms per update: '
      f'bound by {x.bound}'
    )
  yield f'replay       {plan.replay / 1e9:.3g} GB of RAM per host'


def _collectives(plan: 'Plan') -> Iterator[str]:
  """A line per kind, apart for those inside of loops."""
  groups = collections.defaultdict(list)
  for x in plan.collectives:
    groups[x.loop, x.kind].append(x)
  if plan.fits and not groups:
    yield 'collectives  none'
  for (loop, kind), group in sorted(groups.items()):
    times = sum(x.times for x in group)
    size = sum(x.times * x.size for x in group) / 1e6
    where = f', from {len(group)} inside of loops' if loop else ''
    yield (
      f'collectives  {times} {kind} per update, {size:.3g} MB per chip{where}'
    )


if __name__ == '__main__':
  sys.exit(main())
