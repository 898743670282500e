"""Profiles an update and sums its time, FLOPs and memory traffic by part."""

import collections
import dataclasses
import pathlib
import re
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics import flops
from dreamer_tpu.tools.bench import device
from dreamer_tpu.tools.plan.hlo import Program

# Named scopes of the agent.
PARTS = (
  'encoder',
  'observe',
  'dynamics',
  'decoder',
  'outcomes',
  'imagine',
  'actor_critic',
  'optimizer',
)
_PART = re.compile(rf'(?<=[(/])({"|".join(PARTS)})(?=[)/])')
_COPY_BYTES = 2**28
Row = dict[str, Any]


@dataclasses.dataclass
class Cost:
  """Cost of a part of an update on one device.

  Attributes:
    seconds: Time of its operations.
    flops: Floating-point operations.
    moved: Bytes read from and written to memory.
  """

  seconds: float = 0.0
  flops: float = 0.0
  moved: float = 0.0


def parts(config: Any, repeat: int) -> list[Row]:
  """Measures each part and pass of an update on one device.

  `compute` is the time its FLOPs take at the rate of a large matmul, relative
  to the part's time; `memory` is that of its bytes at the rate of a large copy,
  above 1 if they stay in caches. If both are small, the part is bound by the
  number of small operations. Concurrent operations are counted separately.
  """
  learner = device.make_learner(config)
  steps: Any = learner.steps
  arguments = steps.train_arguments(config.batch_length)
  traced = steps.train.trace(*arguments)
  compiled = traced.lower().compile()
  steps.train = compiled
  program = Program(compiled.as_text())
  update = device.make_update(learner, config)
  batches = device.random_batches(learner.agent, config)
  batch = learner.put(next(batches))
  for _ in range(2):
    update(batch)
  times = profile(lambda: update(batch), repeat)
  costs: dict[tuple[str, str], Cost] = collections.defaultdict(Cost)
  for scope, count in flops.count_jaxpr(traced.jaxpr).by_scope.items():
    costs[classify(scope)].flops += count / jax.device_count()
  for x in program.operations():
    cost = costs[classify(x.origin)]
    cost.moved += x.moved
    cost.seconds += times.pop(x.name, 0.0)
  if not any(x.seconds for x in costs.values()):
    raise UserError('The profile of this backend does not name operations.')
  return [*_rows(costs, *rates())]


def classify(origin: str) -> tuple[str, str]:
  """Returns part and pass of an operation from its named scopes."""
  match = _PART.search(f'/{origin}/')
  if not match:
    return 'other', ''
  if match[1] in ('imagine', 'optimizer'):
    return match[1], ''
  return match[1], 'backward' if 'transpose(' in origin else 'forward'


def profile(update: Any, repeat: int) -> dict[str, float]:
  """Returns the seconds per update on one device by compiled operation."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(repeat):
        update()
    (path,) = pathlib.Path(folder).rglob('*.xplane.pb')
    data = jax.profiler.ProfileData.from_serialized_xspace(path.read_bytes())
  times: dict[str, float] = collections.defaultdict(float)
  for plane in data.planes:
    for line in plane.lines:
      for name, seconds in self_time(line.events):
        times[name] += seconds / repeat / jax.device_count()
  return times


def self_time(line: Iterable[Any]) -> Iterator[tuple[str, float]]:
  """Yields operations of a line of a profile and their self time in seconds.

  Args:
    line: Events with `start_ns`, `duration_ns` and `stats`. Events without the
      stat 'hlo_op' are ignored.
  """
  events = []
  for event in line:
    if name := dict(event.stats).get('hlo_op'):
      events.append((event.start_ns, -event.duration_ns, str(name)))
  stack: list[list[Any]] = []  # Name, end and self time of open events.
  for start, negative, name in sorted(events):
    while stack and stack[-1][1] <= start:
      yield stack[-1][0], stack.pop()[2] / 1e9
    if stack:
      stack[-1][2] += negative
    stack.append([name, start - negative, -negative])
  for name, _, seconds in stack:
    yield name, seconds / 1e9


def rates() -> tuple[float, float]:
  """Returns FLOP/s of a large matmul and bytes per second of a large copy."""
  kind = jax.devices()[0].device_kind
  product = _median(device.reference_matmul())
  array = jnp.ones(_COPY_BYTES // 4, jnp.float32)
  copy = jax.jit(lambda x: x + 1)
  seconds = _median(lambda: copy(array))
  compute = flops.peak_flops(kind) or 2 * device.REFERENCE_SIZE**3 / product
  return compute, 2 * _COPY_BYTES / seconds


def _median(run: Callable[[], Any]) -> float:
  return statistics.median(device.timed(run) for _ in range(10))


def _rows(costs: Any, compute: float, memory: float) -> Iterator[Row]:
  total = sum(x.seconds for x in costs.values())
  for (part, way), x in sorted(costs.items(), key=lambda x: -x[1].seconds):
    yield {
      'part': part,
      'pass': way,
      'ms': 1e3 * x.seconds,
      'share': x.seconds / total,
      'gflops': x.flops / 1e9,
      'gb': x.moved / 1e9,
      'compute': x.flops / compute / x.seconds if x.seconds else None,
      'memory': x.moved / memory / x.seconds if x.seconds else None,
    }
