"""Reports memory, collectives and time of an update on a TPU you do not have.

python -m dreamer_tpu.tools.plan --config=configs/atari.py:size200m
  --topology=v5e:4x4 [--chips=N] [--suggest] [--json] [--config.KEY=VALUE ...]

Exit codes: 0 fits, 2 does not fit, 1 error.
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
  from dreamer_tpu.tools.plan.acting import ActingPlan
  from dreamer_tpu.tools.plan.step import UpdatePlan

GIB = 2**30
NO_FIT = 2


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the plan. Returns: the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m dreamer_tpu.tools.plan',
    usage=(__doc__ or '').split('\n\n')[1].replace('\n ', ''),
    description=(__doc__ or '').split('\n\n')[0],
    allow_abbrev=False,
  )
  parser.add_argument(
    '--topology', required=True, help='for example v5e:4x4 or v5p:2x2x2'
  )
  parser.add_argument('--chips', type=int, help='use only the first N chips')
  parser.add_argument(
    '--suggest',
    action='store_true',
    help='compile up to four meshes and choose the best; ignores mesh.*',
  )
  parser.add_argument('--json', action='store_true', help='print JSON')
  logging.set_verbosity(logging.ERROR)
  try:
    config, rest = flags.parse_config(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(rest)
    plans = _make(config, args)
  except UserError as error:
    print('error:', *str(error).split(), file=sys.stderr)
    return 1
  if args.json:
    compared = {'compared': list(map(summary, plans))} if args.suggest else {}
    print(json.dumps(as_json(plans[0]) | compared))
  else:
    text = [comparison(x) for x in plans] if args.suggest else []
    print('\n'.join([*lines(plans[0]), *text]))
  return 0 if plans[0].fits else NO_FIT


def _make(config: Any, args: argparse.Namespace) -> list['UpdatePlan']:
  from dreamer_tpu.metrics.terminal import Terminal
  from dreamer_tpu.tools.plan import meshes, step

  terminal = Terminal(sys.stderr)
  agent = step.make_agent(config)
  try:
    if args.suggest:
      return meshes.suggest(config, agent, args.topology, args.chips, terminal)
    return [step.make(config, agent, args.topology, args.chips, terminal)]
  finally:
    print(terminal.end_line(), end='', file=sys.stderr, flush=True)


def as_json(plan: 'UpdatePlan') -> dict[str, Any]:
  """Returns a plan as JSON values."""
  result = dataclasses.asdict(plan)
  if plan.floors:
    result['floors']['bound'] = plan.floors.bound
  return result


def summary(plan: 'UpdatePlan') -> dict[str, Any]:
  """Returns the figures by which meshes are compared, as JSON values."""
  floor = plan.floors and plan.floors.largest
  return dict(mesh=plan.mesh, fits=plan.fits, peak=plan.peak, floor=floor)


def comparison(plan: 'UpdatePlan') -> str:
  """Returns the line of a mesh among those that were compared."""
  ms = plan.floors and f'{1e3 * plan.floors.largest:.3g} ms'
  return f'compared     {_mesh(plan)}: {ms or "does not fit"}'


def lines(plan: 'UpdatePlan') -> Iterator[str]:
  """Yields the lines of a plan as text."""
  devices = '' if plan.devices == plan.chips else f' ({plan.devices} devices)'
  yield (
    f'{plan.topology}, {plan.chips} chips{devices} on {plan.hosts} hosts, '
    f'mesh {_mesh(plan)}, batch {plan.batch_size} x {plan.batch_length}'
  )
  yield f'parameters   {plan.parameters:,}'
  acting = plan.peak - plan.arguments - plan.temporaries
  parts = f'arguments {plan.arguments / GIB:.2f}'
  parts += f' + temporaries {plan.temporaries / GIB:.2f}'
  parts += f' + acting {acting / GIB:.2f}' if plan.acting else ''
  over = (plan.peak - plan.hbm) / GIB
  yield (
    f'memory       {plan.peak / GIB:.2f} of {plan.hbm / GIB:.2f} GiB per '
    f'{_unit(plan)} ({parts}): '
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
  if plan.acting:
    yield _acting(plan.acting)
  yield f'replay       {plan.replay / 1e9:.3g} GB of RAM per host'


def _acting(plan: 'ActingPlan') -> str:
  return (
    f'acting       {plan.unroll} steps of {plan.envs} environments on one chip '
    f'per host: {plan.resident / GIB:.3g} GiB all the time, '
    f'{plan.peak / GIB:.3g} GiB at most; {plan.hbm_per_step / 1e6:.3g} MB of '
    f'HBM traffic per step; collectives: {plan.collectives or "none"}'
  )


def _collectives(plan: 'UpdatePlan') -> Iterator[str]:
  """Yields a line per kind, with those inside of loops apart."""
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
      f'collectives  {times} {kind} per update, {size:.3g} MB per '
      f'{_unit(plan)}{where}'
    )


def _unit(plan: 'UpdatePlan') -> str:
  return 'chip' if plan.devices == plan.chips else 'device'


def _mesh(plan: 'UpdatePlan') -> str:
  return ' '.join(f'{k}={v}' for k, v in plan.mesh.items())


if __name__ == '__main__':
  # Before JAX is imported. Compiling ahead of time needs no TPU, and JAX cannot
  # load such programs from its cache.
  os.environ.update(JAX_PLATFORMS='cpu', JAX_ENABLE_COMPILATION_CACHE='false')
  sys.exit(main())
