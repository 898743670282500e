"""TPU hardware specs and roofline lower bounds."""

import dataclasses
from collections.abc import Sequence

from dreamer_tpu.metrics import flops
from dreamer_tpu.tools.plan.hlo import Collective

GIB = 2**30
# Seconds of the smallest collective between neighboring chips.
LATENCY = 1e-6


@dataclasses.dataclass(frozen=True)
class Chip:
  """Specs of a TPU chip, per JAX device.

  Attributes:
    kind: Name as in `jax.Device.device_kind`.
    hbm: Bytes of HBM that a program may use.
    bandwidth: HBM bytes per second.
    network: Bytes per second that a device can send to its neighbors.
    devices: Devices of a chip.
  """

  kind: str
  hbm: float
  bandwidth: float
  network: float
  devices: int = 1

  @property
  def flops(self) -> float:
    """Peak dense bfloat16 FLOP/s."""
    return flops.peak_flops(self.kind) or float('nan')


CHIPS = {
  'v4': Chip('TPU v4', 30.75 * GIB, 1.2e12, 300e9),
  'v5e': Chip('TPU v5e', 15.75 * GIB, 0.82e12, 200e9),
  'v5p': Chip('TPU v5p', 95.74 * GIB, 2.77e12, 600e9),
  'v6e': Chip('TPU v6e', 31.25 * GIB, 1.64e12, 400e9),
  'tpu7x': Chip('TPU7x', 94.75 * GIB, 3.69e12, 300e9, devices=2),
}


@dataclasses.dataclass(frozen=True)
class Floors:
  """Lower bounds on the time of an update, in seconds.

  Attributes:
    compute: All FLOPs at the chips' peak.
    memory: All HBM traffic at the peak bandwidth.
    network: All bytes that a chip sends at the bandwidth of all its links, and
      one hop per collective.
  """

  compute: float
  memory: float
  network: float

  @property
  def bound(self) -> str:
    """Name of the largest floor."""
    return max(dataclasses.asdict(self).items(), key=lambda x: x[1])[0]

  @property
  def largest(self) -> float:
    """Largest floor, in seconds."""
    return max(self.compute, self.memory, self.network)


def floors(
  chip: Chip,
  flops_per_device: float,
  hbm_bytes: float,
  collectives: Sequence[Collective],
) -> Floors:
  """Returns the floors of a compiled update.

  Args:
    chip: The kind of chip.
    flops_per_device: FLOPs of the update on one device.
    hbm_bytes: HBM traffic of one device.
    collectives: Collectives of the update.
  """
  network = sum(
    x.times * (x.sent / chip.network + LATENCY) for x in collectives
  )
  return Floors(
    flops_per_device / chip.flops, hbm_bytes / chip.bandwidth, network
  )
