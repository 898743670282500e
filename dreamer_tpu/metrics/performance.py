"""Time of updates and hardware utilization."""

import functools

import jax
from jax.extend import core

from dreamer_tpu.metrics import flops

# JAX monitoring events of compilation, tracing excluded.
_COMPILE_EVENTS = (
  '/jax/core/compile/jaxpr_to_mlir_module_duration',
  '/jax/core/compile/backend_compile_duration',
)


class Performance:
  """Computes `perf/{update_ms,flops_per_update,mfu,compile_s}`."""

  def __init__(self) -> None:
    self._peak: float | None = None
    self._update: flops.Flops | None = None
    _compile_seconds()

  def count(
    self, jaxpr: core.ClosedJaxpr, device_kind: str, devices: int
  ) -> None:
    """Counts the FLOPs of an update, over all devices.

    Args:
      jaxpr: The train step.
      device_kind: `jax.Device.device_kind` of the devices.
      devices: Number of devices that compute an update together.
    """
    self._update = flops.count_jaxpr(jaxpr)
    peak = flops.peak_flops(device_kind)
    self._peak = peak and devices * peak

  def stats(self, seconds: float | None) -> dict[str, float]:
    """Returns the available metrics.

    Args:
      seconds: Duration of one update; None before the first.

    Returns:
      `perf/compile_s` (compile time of this process in seconds),
      `perf/flops_per_update`, `perf/update_ms` (milliseconds), and `perf/mfu`:
      the FLOP/s of matrix products and convolutions, including rematerialized
      ones, as a fraction of the peak of all devices. It is absent for devices
      of unknown peak, such as CPUs.
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
  """Returns a list to which every compilation of this process is appended."""
  seconds: list[float] = []

  def listen(event: str, duration_secs: float, **_: object) -> None:
    if event in _COMPILE_EVENTS:
      seconds.append(duration_secs)

  jax.monitoring.register_event_duration_secs_listener(listen)
  return seconds
