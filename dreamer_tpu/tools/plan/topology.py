"""TPU topology descriptions for ahead-of-time compilation."""

import math
import os
import re
from collections.abc import Sequence
from typing import Any

from jax.experimental import topologies

from dreamer_tpu.errors import UserError

# Dimensions of the torus and maximum number of chips of a slice.
_LIMITS = {
  'v4': (3, 4096),
  'v5e': (2, 256),
  'v5p': (3, 6144),
  'v6e': (2, 256),
  'tpu7x': (3, 9216),
}
# Without these, libtpu looks for a TPU on this machine and fails.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


def devices(name: str, chips: int | None = None) -> list[Any]:
  """Returns the devices of a TPU topology, ordered by host.

  Args:
    name: Generation and shape, such as 'v5e:4x4' or 'tpu7x:2x2x1'.
    chips: Number of chips whose devices to return; all by default.

  Raises:
    UserError: The topology is unknown or has fewer chips.
  """
  generation, shape = _parse(name)
  for key, value in _ENVIRONMENT.items():
    os.environ.setdefault(key, value)
  # One device per chip, as in later generations, not one per core.
  options = {'chip_config_name': 'megacore'} if generation == 'v4' else {}
  found: list[Any]
  try:
    found = topologies.get_topology_desc(
      platform='tpu',
      topology_name=f'{generation}:{"x".join(map(str, shape))}',
      chips_per_host_bounds=_host_bounds(shape),
      **options,
    ).devices
  except Exception as error:  # libtpu raises various types
    raise UserError(
      f'--topology={name} is not supported by libtpu: {_brief(error)}'
    ) from error
  found = sorted(found, key=lambda x: (x.process_index, x.id))
  count = math.prod(shape)
  if chips is not None and not 1 <= chips <= count:
    raise UserError(
      f'--chips={chips}: {name} has {count} chips; choose 1 to {count} or a '
      'larger topology.'
    )
  return found[: (chips or count) * (len(found) // count)]


def _parse(name: str) -> tuple[str, tuple[int, ...]]:
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', name)
  generation = match[1] if match else ''
  shape = tuple(int(x) for x in match[2].split('x')) if match else ()
  if generation not in _LIMITS:
    raise UserError(
      f"--topology='{name}' is unknown; use GENERATION:SHAPE, such as v5e:4x4 "
      f'or v5p:2x2x2. Generations: {", ".join(_LIMITS)}.'
    )
  rank, maximum = _LIMITS[generation]
  if len(shape) != rank or any(x != 1 and (x < 1 or x % 2) for x in shape[:2]):
    example = 'x'.join('4' * rank)
    raise UserError(
      f"--topology='{name}': a {generation} topology has {rank} dimensions, "
      f'the first two 1 or even, such as {generation}:{example}.'
    )
  if not 1 <= math.prod(shape) <= maximum:
    raise UserError(
      f"--topology='{name}' has {math.prod(shape)} chips; a {generation} slice "
      f'has 1 to {maximum}.'
    )
  return generation, shape


def _host_bounds(shape: Sequence[int]) -> tuple[int, int, int]:
  """Returns the chips of one host in each dimension, 2x2x1 at most."""
  x, y = (1 if size == 1 else 2 for size in shape[:2])
  return x, y, 1


def _brief(error: Exception) -> str:
  text = ' '.join(str(error).split())
  return text[:160].removeprefix('INVALID_ARGUMENT: ')
