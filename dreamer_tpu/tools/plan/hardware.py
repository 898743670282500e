"""What TPU chips can do, and how long an update must take on them at least."""

import dataclasses
from collections.abc import Sequence

from dreamer_tpu.metrics import flops
from dreamer_tpu.tools.plan.hlo import Collective

GIB = 2**30
# Seconds that the smallest collective takes between neighbouring chips.
LATENCY = 1e-6


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of TPU chip.

  Attributes:
    kind: As `jax.Device.device_kind` has it.
    hbm: Bytes of main memory that a program may use.
    bandwidth: Bytes per second from and to it.
    network: Bytes per second that it can send to its neighbours.
  """

  kind: str
  hbm: float
  bandwidth: float
  network: float

  @property
  def flops(self) -> float:
    """Peak dense bfloat16 FLOP/s."""
    return flops.peak_flops(self.kind) or float('nan')


CHIPS = {
  'v4': Chip('TPU v4', 30.75 * GIB, 1.2e12, 300e9),
  'v5e': Chip('TPU v5e', 15.75 * GIB, 0.82e12, 200e9),
  'v5p': Chip('TPU v5p', 95.74 * GIB, 2.77e12, 600e9),
  'v6e': Chip('TPU v6e', 31.25 * GIB, 1.64e12, 400e9),
}


@dataclasses.dataclass(frozen=True)
class Floors:
  """Seconds below which an update cannot go, for each of three reasons.

  Attributes:
    compute: All FLOPs at the chips' peak.
    memory: All bytes that the program moves, at the memory's bandwidth.
    network: All bytes that a chip sends over all of its links at once, and
      one hop per collective.
  """

  compute: float
  memory: float
  network: float

  @property
  def bound(self) -> str:
    """The name of the largest."""
    return max(dataclasses.asdict(self).items(), key=lambda x: x[1])[0]

  @property
  def largest(self) -> float:
    """The largest, in seconds."""
    return max(self.compute, self.memory, self.network)


def floors(
  chip: Chip, flops_per_chip: float, moved: float, sends: Sequence[Collective]
) -> Floors:
  """The floors of a compiled program.

  Args:
    chip: The kind of chip.
    flops_per_chip: FLOPs of an update on one chip.
    moved: Bytes to and from its memory.
    sends: Collectives of an update.
  """
  network = sum(x.times * (x.sent / chip.network + LATENCY) for x in sends)
  return Floors(flops_per_chip / chip.flops, moved / chip.bandwidth, network)
