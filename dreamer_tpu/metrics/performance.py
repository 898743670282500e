"""How fast the updates are, and how much of the hardware they use."""

import functools

import jax
from jax.extend import core

from dreamer_tpu.metrics import flops

# What JAX reports of a compilation, after tracing.
_COMPILING = (
  '/jax/core/compile/jaxpr_to_mlir_module_duration',
  '/jax/core/compile/backend_compile_duration',
)


class Performance:
  """The metrics `perf/{update_ms,flops_per_update,mfu,compile_s}`."""

  def __init__(self) -> None:
    self._peak: float | None = None
    self._update: flops.Flops | None = None
    _compile_seconds()

  def count(
    self, jaxpr: core.ClosedJaxpr, device_kind: str, devices: int
  ) -> None:
    """Counts the FLOPs of an update, over all devices.

    Args:
      jaxpr: Of the train step.
      device_kind: Of the devices, as `jax.Device.device_kind` has it.
      devices: How many compute an update together.
    """
    self._update = flops.count_jaxpr(jaxpr)
    peak = flops.peak_flops(device_kind)
    self._peak = peak and devices * peak

  def stats(self, seconds: float | None) -> dict[str, float]:
    """What is known.

    Args:
      seconds: Of one update, if there was any.

    Returns:
      `perf/compile_s` (seconds that this process has compiled for),
      `perf/flops_per_update`, `perf/update_ms` (milliseconds), and `perf/mfu`:
      the FLOP/s in products and convolutions as a share of the peak of all
      devices. What is recomputed to save memory counts as well. On devices
      whose peak is not known, such as a CPU, it is absent.
    """
    stats = {'perf/compile_s': sum(_compile_seconds())}
    if self._update:
      stats['perf/flops_per_update'] = self._update.total
    if seconds:
      stats['perf/update_ms'] = 1000 * seconds
    if self._update and seconds and self._peak:
      stats['perf/mfu'] = self._update.matmul / seconds / self._peak
    return stats


@functools.cache
def _compile_seconds() -> list[float]:
  """A list that grows with every compilation of this process."""
  seconds: list[float] = []

  def listen(event: str, duration_secs: float, **_: object) -> None:
    if event in _COMPILING:
      seconds.append(duration_secs)

  jax.monitoring.register_event_duration_secs_listener(listen)
  return seconds
