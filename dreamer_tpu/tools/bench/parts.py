"""Where the time of an update goes: a profile of it, summed up by parts."""

import collections
import dataclasses
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics import flops
from dreamer_tpu.tools.bench import device
from dreamer_tpu.tools.plan.hlo import Program

# As the agent names its scopes.
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
_STREAM_BYTES = 2**28
Row = dict[str, Any]


@dataclasses.dataclass
class Cost:
  """What a part takes in an update: seconds, operations and bytes moved."""

  seconds: float = 0.0
  flops: float = 0.0
  moved: float = 0.0


def parts(config: Any, repeat: int) -> list[Row]:
  """A row per part and pass, of one device, and what bounds it.

  `compute` is the share of the part's time that its operations would take at
  the rate of a large product, `memory` that of its bytes at the rate of a large
  copy, more than 1 where it stays in caches. Where both are small, it is the number of small operations that takes
  the time. Two operations at the same time count twice.
  """
  learner = device.make_learner(config)
  steps: Any = learner.steps
  arguments = steps.train_arguments(config.batch_length)
  traced = steps.train.trace(*arguments)
  compiled = traced.lower().compile()
  steps.train = compiled
  program = Program(compiled.as_text())
  update = device.updating(learner, config)
  batches = device.random_batches(learner.agent, config)
  batch = learner.put(next(batches))
  for _ in range(2):
    update(batch)
  times = profile(lambda: update(batch), repeat)
  costs: dict[tuple[str, str], Cost] = collections.defaultdict(Cost)
  for scope, count in flops.count_jaxpr(traced.jaxpr).by_scope.items():
    costs[place(scope)].flops += count / jax.device_count()
  for x in program.operations():
    cost = costs[place(x.origin)]
    cost.moved += x.moved
    cost.seconds += times.pop(x.name, 0.0)
  if not any(x.seconds for x in costs.values()):
    raise UserError('The profile of this backend does not name operations.')
  return [*_rows(costs, *rates())]


def place(origin: str) -> tuple[str, str]:
  """Part and pass of an operation, from the scopes around it."""
  match = _PART.search(f'/{origin}/')
  if not match:
    return 'other', ''
  if match[1] in ('imagine', 'optimizer'):
    return match[1], ''
  return match[1], 'backward' if 'transpose(' in origin else 'forward'


def profile(update: Any, repeat: int) -> dict[str, float]:
  """Seconds of an update on one device, by the compiled operation's name."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(repeat):
        update()
    (path,) = pathlib.Path(folder).rglob('*.xplane.pb')
    data = jax.profiler.ProfileData.from_serialized_xspace(path.read_bytes())
  times: dict[str, float] = collections.defaultdict(float)
  for plane in data.planes:
    for line in plane.lines:
      for name, seconds in alone(line.events):
        times[name] += seconds / repeat / jax.device_count()
  return times


def alone(line: Iterable[Any]) -> Iterator[tuple[str, float]]:
  """Operations of a profile's line, and their seconds without those inside.

  Args:
    line: Events with `start_ns`, `duration_ns` and `stats`; those that are of
      operations have 'hlo_op' among the last.
  """
  events = []
  for event in line:
    if name := dict(event.stats).get('hlo_op'):
      events.append((event.start_ns, -event.duration_ns, str(name)))
  around: list[list[Any]] = []  # name, end and seconds of those still open
  for start, negative, name in sorted(events):
    while around and around[-1][1] <= start:
      yield around[-1][0], around.pop()[2] / 1e9
    if around:
      around[-1][2] += negative
    around.append([name, start - negative, -negative])
  for name, _, seconds in around:
    yield name, seconds / 1e9


def rates() -> tuple[float, float]:
  """FLOP/s of a large product and bytes per second of a large copy."""
  device = jax.devices()[0]
  size = device.UNIT
  matrix = jnp.ones((size, size), jnp.float32)
  product = _seconds(jax.jit(lambda x: x @ x), matrix)
  array = jnp.ones(_STREAM_BYTES // 4, jnp.float32)
  copy = _seconds(jax.jit(lambda x: x + 1), array)
  compute = flops.peak_flops(device.device_kind) or 2 * size**3 / product
  return compute, 2 * _STREAM_BYTES / copy


def _seconds(function: Any, x: jax.Array) -> float:
  times = []
  for _ in range(10):
    start = time.perf_counter()
    function(x).block_until_ready()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


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
