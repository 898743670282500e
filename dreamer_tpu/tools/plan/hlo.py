"""Counts collectives and HBM traffic in the HLO text of a compiled program.

XLA's cost analysis counts the body of a loop once. Here every instruction
counts once per iteration of the loops around it.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
  'collective-broadcast',
)

_BITS = {'pred': 8, 's4': 4, 'u4': 4, 'bf16': 16, 'token': 0, 'opaque': 0}
_HEADER = re.compile(r'(ENTRY )?%?([^\s(]+) \(.*\{$')
_LINE = re.compile(r'\s+(?:ROOT )?%?(\S+) = (.*)$')
_OPCODE = re.compile(r' ([a-z][a-z0-9-]*)\(')
_ARRAY = re.compile(r'([a-z][a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?')
_NAME = re.compile(r'%([\w.-]+)')
_CALL = re.compile(r'(calls|to_apply|body|condition)=%?([\w.-]+)')
_CALLS = re.compile(r'(?:branch|called)_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'known_trip_count[^}]*"n":"(\d+)"')
# The three notations of device groups.
_LISTS = re.compile(r'replica_groups=\{\{([\d,]*)\}')
_IOTA = re.compile(r'replica_groups=\[\d+,(\d+)\]<=')
_MESH = re.compile(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}')
# Instructions that access no memory themselves.
_FREE_NAMES = """
  parameter constant tuple get-tuple-element bitcast while conditional call
  after-all partition-id replica-id iota opt-barrier add-dependency
"""
_FREE = frozenset(_FREE_NAMES.split())


@dataclasses.dataclass(frozen=True)
class Collective:
  """A collective of a program.

  Attributes:
    kind: One of `KINDS`.
    size: Bytes per chip of the operand, or of the result of a gather.
    group: Number of chips in a group.
    times: Number of executions per update.
    loop: Whether it is inside of a loop.
    origin: JAX's name of the operation it was compiled from.
  """

  kind: str
  size: int
  group: int
  times: int
  loop: bool
  origin: str

  @property
  def sent(self) -> float:
    """Minimum number of bytes that a chip sends per execution."""
    share = (self.group - 1) / max(1, self.group)
    if self.kind == 'all-reduce':
      return 2 * share * self.size
    if self.kind.startswith('collective'):
      return self.size
    return share * self.size


@dataclasses.dataclass(frozen=True)
class Operation:
  """An instruction of a program.

  Attributes:
    name: Name in the compiled program and in profiles.
    moved: Bytes that it reads and writes per update.
    origin: JAX's name of the operation it was compiled from. Instructions
      that the compiler adds without one, such as the transpositions in a
      convolution's gradient, have that of their user.
  """

  name: str
  moved: float
  origin: str


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  rest: str


_Computation = dict[str, _Instruction]


class Program:
  """A compiled program.

  Args:
    text: HLO text from `compiled.as_text()`.
  """

  def __init__(self, text: str):
    self._computations, self._entry = _parse(text)
    self._times: dict[str, int] = collections.defaultdict(int)
    self._loops: set[str] = set()
    # Fusions and reductions, whose instructions access no memory.
    self._inner: set[str] = set()
    self._visit(self._entry, 1, False, False)

  def collectives(self) -> list[Collective]:
    """Returns all collectives, the largest traffic first.

    To overlap a collective with other work, the compiler may spread it over
    several instructions and loops. Its channel identifies it, and it counts
    as often as it is started.
    """
    found: dict[object, Collective] = {}
    for name, computation in self._computations.items():
      for x in computation.values():
        kind = x.opcode.removesuffix('-start')
        if kind not in KINDS or not self._times[name]:
          continue
        channel = re.search(r'channel_id=(\d+)', x.rest)
        key = channel[1] if channel else (name, x.name)
        item = self._collective(kind, name, computation, x)
        if key not in found or item.times < found[key].times:
          found[key] = item
    return sorted(found.values(), key=lambda x: -x.sent * x.times)

  def hbm_bytes(self) -> float:
    """Returns the bytes that one chip reads from and writes to HBM."""
    return sum(x.moved for x in self.operations())

  def operations(self) -> Iterator[Operation]:
    """Yields all instructions that access memory themselves."""
    for name, computation in self._computations.items():
      if name in self._inner or not self._times[name]:
        continue
      origins = _origins(computation)
      for x in computation.values():
        if x.opcode not in _FREE:
          moved = self._times[name] * self._moved(computation, x)
          yield Operation(name=x.name, moved=moved, origin=origins[x.name])

  def _visit(self, name: str, times: int, loop: bool, inner: bool) -> None:
    self._times[name] += times
    if loop:
      self._loops.add(name)
    if inner:
      self._inner.add(name)
    for x in self._computations[name].values():
      for how, callee in _callees(x):
        if callee not in self._computations:
          continue
        trips = self._trips(x) if how == 'body' else 1
        self._visit(
          callee,
          times * trips,
          loop or how == 'body',
          inner or how == 'to_apply' or x.opcode == 'fusion',
        )

  def _trips(self, loop: _Instruction) -> int:
    """Returns the iterations of a loop, from the constant in its condition."""
    if match := _TRIPS.search(loop.rest):
      return int(match[1])
    (name,) = [c for how, c in _callees(loop) if how == 'condition']
    numbers = [
      int(match[1])
      for x in self._computations[name].values()
      if x.opcode == 'constant' and (match := re.match(r'(\d+)\)', x.rest))
    ]
    return max(numbers, default=1)

  def _collective(self, kind, name, computation, x) -> Collective:
    group = _group(x.rest)
    size = sum(
      _size(computation[operand].shape)
      for operand in x.operands
      if operand in computation
    )
    if kind == 'all-gather':
      size *= group
    # XLA for TPU compiles a reduce-scatter to a fusion of this name.
    if name.startswith('all-reduce-scatter'):
      kind = 'reduce-scatter'
    return Collective(
      kind=kind,
      size=int(size),
      group=group,
      times=self._times[name],
      loop=name in self._loops,
      origin=_origin(x),
    )

  def _moved(self, computation: _Computation, x: _Instruction) -> float:
    if x.opcode.endswith('-start'):
      return 0
    if x.opcode.endswith('-done'):
      return _size(x.shape)
    operands = [computation[n] for n in x.operands if n in computation]
    if x.opcode == 'fusion':
      callee = next(c for _, c in _callees(x))
      return self._moved_by_fusion(self._computations[callee], operands, x)
    if x.opcode == 'dynamic-slice':
      return 2 * _hbm(x.shape)
    if x.opcode == 'dynamic-update-slice':
      return 2 * _hbm(operands[1].shape)
    return _hbm(x.shape) + sum(_hbm(y.shape) for y in operands)

  def _moved_by_fusion(self, inside, operands, x) -> float:
    """Counts only the used slices of operands, and updates in place."""
    total = 0.0
    users = collections.defaultdict(list)
    for y in inside.values():
      for position, operand in enumerate(y.operands):
        users[operand].append((y, position))
    parameters = {
      int(y.rest.split(')')[0]): y.name
      for y in inside.values()
      if y.opcode == 'parameter'
    }
    for number, operand in enumerate(operands):
      uses = users[parameters.get(number, '')]
      sliced = [_used(y, position) for y, position in uses]
      whole = not uses or any(part is None for part in sliced)
      if whole:
        total += _hbm(operand.shape)
      elif _hbm(operand.shape):
        total += sum(_size(part) for part in sliced if part)
    updates = [y for y in inside.values() if y.opcode == 'dynamic-update-slice']
    if updates and _hbm(x.shape):
      return total + sum(_size(inside[y.operands[1]].shape) for y in updates)
    return total + _hbm(x.shape)


def _origin(x: _Instruction) -> str:
  match = re.search(r'op_name="([^"]*)"', x.rest)
  return match[1] if match else ''


def _origins(computation: _Computation) -> dict[str, str]:
  origins: dict[str, str] = {}
  for x in reversed(computation.values()):  # Users first.
    origin = _origin(x) or origins.get(x.name, '')
    origins[x.name] = origin
    if origin:
      for operand in x.operands:
        origins.setdefault(operand, origin)
  return origins


def _used(user: _Instruction, position: int) -> str | None:
  """Returns the shape a user reads of an operand; '' none, None all of it."""
  if user.opcode in ('dynamic-slice', 'slice') and position == 0:
    return user.shape
  if user.opcode == 'dynamic-update-slice' and position == 0:
    return ''
  return None


def _parse(text: str) -> tuple[Mapping[str, _Computation], str]:
  computations: dict[str, _Computation] = {}
  entry = ''
  current: _Computation = {}
  for line in text.splitlines():
    if not line.startswith(' '):
      if match := _HEADER.match(line):
        current = computations.setdefault(match[2], {})
        entry = match[2] if match[1] else entry
      continue
    if match := _LINE.match(line):
      opcode = _OPCODE.search(' ' + match[2])
      if opcode is None:
        continue
      shape = match[2][: max(0, opcode.start() - 1)]
      rest = match[2][opcode.end() - 1 :]
      arguments = rest.split(')')[0]
      current[match[1]] = _Instruction(
        name=match[1],
        shape=shape,
        opcode=opcode[1],
        operands=tuple(_NAME.findall(arguments)),
        rest=rest,
      )
  return computations, entry


def _callees(x: _Instruction) -> Iterator[tuple[str, str]]:
  yield from _CALL.findall(x.rest)
  for names in _CALLS.findall(x.rest):
    for name in names.split(','):
      yield 'branch', name.strip().removeprefix('%')


def _group(rest: str) -> int:
  """Returns the number of devices in each group of a collective."""
  if match := _IOTA.search(rest):
    return int(match[1])
  if match := _LISTS.search(rest):
    return len(match[1].split(','))
  if match := _MESH.search(rest):
    sizes = dict(
      pair.strip().replace("'", '').split('=') for pair in match[1].split(',')
    )
    names = [x.strip().strip("'") for x in match[2].split(',')]
    return math.prod(int(sizes[name.split(':')[0]]) for name in names)
  return 1


def _size(shape: str) -> int:
  """Returns the bytes of an array or of all arrays of a tuple."""
  return sum(_bytes(x, dims) for x, dims, _ in _ARRAY.findall(shape))


def _hbm(shape: str) -> int:
  """Returns the bytes of those arrays of a shape that are in HBM."""
  found = _ARRAY.findall(shape)
  return sum(_bytes(x, dims) for x, dims, at in found if 'S(' not in at)


def _bytes(dtype: str, dims: str) -> int:
  count = math.prod(int(x) for x in dims.split(',') if x)
  digits = re.search(r'\d+', dtype)
  bits = _BITS.get(dtype, int(digits[0]) if digits else 0)
  return count * bits // 8
