"""FLOPs of a JAX program, counted on its jaxpr.

The compiler's own cost analysis counts the body of a loop once, however often
it runs. Here the lengths of scans are multiplied in.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

# Peak dense bfloat16 FLOP/s of one device, by the start of its device kind;
# the first that fits is taken.
_PEAKS = (
  ('TPU v4', 275e12),
  ('TPU v5 lite', 197e12),
  ('TPU v5e', 197e12),
  ('TPU v5p', 459e12),
  ('TPU v5', 459e12),
  ('TPU v6 lite', 918e12),
  ('TPU v6e', 918e12),
  ('NVIDIA A100', 312e12),
  ('NVIDIA H100 PCIe', 756e12),
  ('NVIDIA H100', 989e12),
  ('NVIDIA H200', 989e12),
  ('NVIDIA GH200', 989e12),
)

# Primitives that move, compare or make up numbers.
_FREE_NAMES = """
  all_gather all_to_all argmax argmin bitcast_convert_type broadcast
  broadcast_in_dim clamp concatenate convert_element_type copy copy_p
  device_put dynamic_slice dynamic_update_slice eq expand_dims gather ge gt
  iota is_finite le lt max min name ne optimization_barrier pad pbroadcast
  pcast pmax pmin ppermute psum psum_invariant pvary random_bits random_fold_in
  random_seed random_split random_unwrap random_wrap real reduce_max reduce_min
  reduce_precision reduce_scatter reshape rev select_and_gather_add select_n
  sharding_constraint shift_left sign slice sort split squeeze stop_gradient
  threefry2x32 top_k transpose
"""
# Primitives that work once on every element that goes in.
_PER_INPUT_NAMES = """
  cumlogsumexp cummax cummin cumprod cumsum reduce reduce_prod reduce_sum
  reduce_window reduce_window_sum
"""
_MATMULS = ('dot_general', 'conv_general_dilated')
_FREE = frozenset(_FREE_NAMES.split())
_PER_INPUT = frozenset(_PER_INPUT_NAMES.split())

# By primitive and scope.
Totals = collections.defaultdict[tuple[str, str], float]


@dataclasses.dataclass(frozen=True)
class Flops:
  """The floating-point operations of a program, over all its devices.

  Attributes:
    total: All operations; a multiply-add is two.
    matmul: Those in products and convolutions, the part of a model's FLOPs
      that its matrix units can run.
    by_primitive: `total` by the name of the primitive, largest first.
    by_scope: `total` by the names around an operation, as `jax.named_scope`
      and transformations give them.
    exact: False if the program holds a `while` loop, whose body is counted
      once because its length is not known.
  """

  total: float
  matmul: float
  by_primitive: dict[str, float]
  by_scope: dict[str, float]
  exact: bool


def count(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Flops:
  """Counts the FLOPs of `fn(*args, **kwargs)` without running it.

  Args:
    fn: A function that JAX can trace, jitted or not.
    *args: Arrays or `jax.ShapeDtypeStruct`s, nested as `fn` wants them.
    **kwargs: The same, by keyword.
  """
  # What has options of the compiler can only be traced as it is.
  jitted = fn if isinstance(fn, jax.stages.Wrapped) else jax.jit(fn)
  return count_jaxpr(jitted.trace(*args, **kwargs).jaxpr)


def count_jaxpr(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> Flops:
  """Counts the FLOPs of a traced program, but for what nothing depends on."""
  totals: Totals = collections.defaultdict(float)
  jaxpr = _open(jaxpr)
  used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  exact = _walk(used, 1.0, totals, '')
  by_primitive: dict[str, float] = collections.defaultdict(float)
  by_scope: dict[str, float] = collections.defaultdict(float)
  for (name, scope), flops in sorted(totals.items(), key=lambda x: -x[1]):
    by_primitive[name] += flops
    by_scope[scope] += flops
  by_primitive = dict(sorted(by_primitive.items(), key=lambda x: -x[1]))
  return Flops(
    total=sum(totals.values()),
    matmul=sum(by_primitive.get(name, 0.0) for name in _MATMULS),
    by_primitive=by_primitive,
    by_scope=dict(by_scope),
    exact=exact,
  )


def peak_flops(device_kind: str) -> float | None:
  """Returns a device's peak bfloat16 FLOP/s; None where it is not known.

  Args:
    device_kind: As `jax.Device.device_kind` has it, 'TPU v5 lite' for one.
  """
  for prefix, peak in _PEAKS:
    if device_kind.lower().startswith(prefix.lower()):
      return peak
  return None


def _walk(
  jaxpr: core.Jaxpr, times: float, totals: Totals, outside: str
) -> bool:
  """Adds the FLOPs of a jaxpr that runs `times` times. Returns: exact."""
  exact = True
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    scope = '/'.join(filter(None, (outside, str(eqn.source_info.name_stack))))
    if name == 'cond':
      exact &= _walk_branches(eqn.params, times, totals, scope)
    elif name.startswith('scatter'):
      # Its jaxpr combines two scalars.
      if name != 'scatter':
        totals[name, scope] += times * _size(eqn.invars[2])
    elif bodies := list(_bodies(eqn)):
      exact &= name != 'while'
      for body, repeats in bodies:
        exact &= _walk(body, times * repeats, totals, scope)
    elif flops := _flops(eqn):
      totals[name, scope] += times * flops
  return exact


def _walk_branches(
  params: Any, times: float, totals: Totals, scope: str
) -> bool:
  """Adds the most expensive branch, or the one that no platform has to itself."""
  branches = params['branches']
  platforms = params.get('branches_platforms')
  if platforms and None in platforms:
    branches = [branches[platforms.index(None)]]
  counts: list[Totals] = [collections.defaultdict(float) for _ in branches]
  exact = [
    _walk(_open(branch), times, result, scope)
    for branch, result in zip(branches, counts, strict=True)
  ]
  largest = max(counts, key=lambda result: sum(result.values()))
  for key, flops in largest.items():
    totals[key] += flops
  return all(exact)


def _bodies(eqn: core.JaxprEqn) -> Iterator[tuple[core.Jaxpr, float]]:
  """The jaxprs an equation calls, each with how often."""
  name, params = eqn.primitive.name, eqn.params
  if name in _PER_INPUT or name in _FREE:
    return
  repeats = 1.0
  if name == 'scan':
    repeats = params['length']
  elif name == 'shard_map':
    # The body is the program of one device.
    manual = params.get('manual_axes', params['mesh'].axis_names)
    repeats = math.prod(params['mesh'].shape[axis] for axis in manual)
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, (core.ClosedJaxpr, core.Jaxpr)):
        yield _open(item), repeats


def _flops(eqn: core.JaxprEqn) -> float:
  """The FLOPs of an equation that calls nothing."""
  name = eqn.primitive.name
  if name == 'dot_general':
    return _dot_flops(eqn)
  if name == 'conv_general_dilated':
    return _conv_flops(eqn)
  if name in _FREE or not _floating(eqn.invars + eqn.outvars):
    return 0
  if name in _PER_INPUT:
    return sum(_size(var) for var in eqn.invars)
  return max(_size(var) for var in eqn.outvars) if eqn.outvars else 0


def _dot_flops(eqn: core.JaxprEqn) -> float:
  (contract, _), _ = eqn.params['dimension_numbers']
  shape = _shape(eqn.invars[0])
  return 2 * _size(eqn.outvars[0]) * math.prod(shape[dim] for dim in contract)


def _conv_flops(eqn: core.JaxprEqn) -> float:
  """Counts products with real elements, not with padding or dilation holes."""
  params = eqn.params
  numbers = params['dimension_numbers']
  lhs, rhs = map(_shape, eqn.invars[:2])
  out = _shape(eqn.outvars[0])
  taps = 1
  for index, (a, b, c) in enumerate(
    zip(
      numbers.lhs_spec[2:],
      numbers.rhs_spec[2:],
      numbers.out_spec[2:],
      strict=True,
    )
  ):
    taps *= _taps(
      lhs[a],
      rhs[b],
      out[c],
      params['window_strides'][index],
      params['padding'][index][0],
      params['lhs_dilation'][index],
      params['rhs_dilation'][index],
    )
  channels_in = rhs[numbers.rhs_spec[1]]
  channels_out = out[numbers.out_spec[1]]
  batch = out[numbers.out_spec[0]]
  # With batch groups each output sees one group of the input's batch only,
  # and `batch` is already that of one group.
  return 2 * batch * channels_out * channels_in * taps


def _taps(size, kernel, out, stride, pad, lhs_dilation, rhs_dilation) -> int:
  """How many pairs of output position and kernel tap meet an input element."""
  position = (
    np.arange(out)[:, None] * stride
    - pad
    + np.arange(kernel)[None, :] * rhs_dilation
  )
  inside = (position >= 0) & (position <= (size - 1) * lhs_dilation)
  return int((inside & (position % lhs_dilation == 0)).sum())


def _open(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> core.Jaxpr:
  return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _size(var: Any) -> int:
  return math.prod(_shape(var))


def _shape(var: Any) -> tuple[int, ...]:
  return getattr(var.aval, 'shape', ())


def _floating(variables: Any) -> bool:
  return any(
    jax.numpy.issubdtype(var.aval.dtype, np.inexact)
    for var in variables
    if hasattr(var.aval, 'dtype')
  )
