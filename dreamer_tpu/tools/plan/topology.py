"""TPU topologies as devices that need not be there, to compile for."""

import math
import os
import re
from collections.abc import Sequence
from typing import Any

from jax.experimental import topologies

from dreamer_tpu.errors import UserError

# Dimensions of the torus, and the most chips of one slice.
_LIMITS = {'v4': (3, 4096), 'v5e': (2, 256), 'v5p': (3, 6144), 'v6e': (2, 256)}
# Without these, libtpu looks for the TPU of this machine and complains.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


def devices(name: str, chips: int | None = None) -> list[Any]:
  """The chips of a TPU topology, by host and then as the compiler orders them.

  Args:
    name: Such as 'v5e:4x4' or 'v5p:2x2x2'.
    chips: Takes only the first so many; None takes all.

  Raises:
    UserError: No such topology, or fewer chips than asked for.
  """
  generation, shape = _parse(name)
  for key, value in _ENVIRONMENT.items():
    os.environ.setdefault(key, value)
  # One device a chip, as the others have it, not one a core.
  options = {'chip_config_name': 'megacore'} if generation == 'v4' else {}
  found: list[Any]
  try:
    found = topologies.get_topology_desc(
      platform='tpu',
      topology_name=f'{generation}:{"x".join(map(str, shape))}',
      chips_per_host_bounds=_host_bounds(shape),
      **options,
    ).devices
  except Exception as error:  # of whatever type libtpu chooses
    raise UserError(
      f'--topology={name} cannot be compiled for: {_brief(error)}'
    ) from error
  found = sorted(found, key=lambda x: (x.process_index, x.id))
  if chips is not None and not 1 <= chips <= len(found):
    raise UserError(
      f'--chips={chips}: {name} has {len(found)} chips; choose 1 to '
      f'{len(found)} or a larger topology.'
    )
  return list(found[:chips])


def _parse(name: str) -> tuple[str, tuple[int, ...]]:
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', name)
  generation = match[1] if match else ''
  shape = tuple(int(x) for x in match[2].split('x')) if match else ()
  if generation not in _LIMITS:
    raise UserError(
      f"--topology='{name}' is unknown; write GENERATION:SHAPE, such as "
      f'v5e:4x4 or v5p:2x2x2. Generations: {", ".join(_LIMITS)}'
    )
  rank, most = _LIMITS[generation]
  if len(shape) != rank or any(x != 1 and (x < 1 or x % 2) for x in shape[:2]):
    example = 'x'.join('4' * rank)
    raise UserError(
      f"--topology='{name}': a {generation} topology has {rank} dimensions, "
      f'the first two 1 or even, such as {generation}:{example}.'
    )
  if not 1 <= math.prod(shape) <= most:
    raise UserError(
      f"--topology='{name}' has {math.prod(shape)} chips; a {generation} slice "
      f'has 1 to {most}.'
    )
  return generation, shape


def _host_bounds(shape: Sequence[int]) -> tuple[int, int, int]:
  """Chips of one host in each dimension: 2x2x1, and 1 of a single chip."""
  x, y = (1 if size == 1 else 2 for size in shape[:2])
  return x, y, 1


def _brief(error: Exception) -> str:
  text = ' '.join(str(error).split())
  return text[:160].removeprefix('INVALID_ARGUMENT: ')
