"""Counts the FLOPs of a JAX program from its jaxpr.

XLA's cost analysis counts the body of a loop once. Here it is multiplied by
the length of the scan.
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

# Peak dense bfloat16 FLOP/s of one device by prefix of its device kind; the
# first match counts.
_PEAKS = (
  ('TPU v4', 275e12),
  ('TPU v5 lite', 197e12),
  ('TPU v5e', 197e12),
  ('TPU v5', 459e12),
  ('TPU v6 lite', 918e12),
  ('TPU v6e', 918e12),
  ('TPU7x', 1153.5e12),  # A device is half a chip.
  ('NVIDIA A100', 312e12),
  ('NVIDIA H100 PCIe', 756e12),
  ('NVIDIA H100', 989e12),
  ('NVIDIA H200', 989e12),
  ('NVIDIA GH200', 989e12),
)

# Primitives that move, compare or generate numbers.
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
# Primitives that do one operation per input element.
_PER_INPUT_NAMES = """
  cumlogsumexp cummax cummin cumprod cumsum reduce reduce_prod reduce_sum
  reduce_window reduce_window_sum
"""
_FREE = frozenset(_FREE_NAMES.split())
_PER_INPUT = frozenset(_PER_INPUT_NAMES.split())
_MATMULS = ('dot_general', 'conv_general_dilated')

# FLOPs by primitive and scope.
Totals = collections.defaultdict[tuple[str, str], float]


@dataclasses.dataclass(frozen=True)
class Flops:
  """Floating-point operations of a program, over all its devices.

  Attributes:
    total: All operations; a multiply-add is two.
    matmul: Operations in matrix products and convolutions.
    by_scope: `total` by name stack, from `jax.named_scope` and
      transformations.
    exact: False if the program has a `while` loop, whose body is counted once
      because its length is unknown.
  """

  total: float
  matmul: float
  by_scope: dict[str, float]
  exact: bool


def count(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Flops:
  """Counts the FLOPs of `fn(*args, **kwargs)` without running it.

  Args:
    fn: A function that JAX can trace, jitted or not.
    *args: Trees of arrays or `jax.ShapeDtypeStruct`s.
    **kwargs: Trees of arrays or `jax.ShapeDtypeStruct`s.
  """
  # A function with compiler options cannot be jitted again.
  jitted = fn if isinstance(fn, jax.stages.Wrapped) else jax.jit(fn)
  return count_jaxpr(jitted.trace(*args, **kwargs).jaxpr)


def count_jaxpr(jaxpr: core.ClosedJaxpr | core.Jaxpr) -> Flops:
  """Counts the FLOPs of a traced program, without dead code."""
  totals: Totals = collections.defaultdict(float)
  jaxpr = _open(jaxpr)
  used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  exact = _walk(used, 1.0, totals, '')
  by_scope: dict[str, float] = collections.defaultdict(float)
  for (_, scope), flops in totals.items():
    by_scope[scope] += flops
  return Flops(
    total=sum(totals.values()),
    matmul=sum(x for (name, _), x in totals.items() if name in _MATMULS),
    by_scope=dict(by_scope),
    exact=exact,
  )


def peak_flops(device_kind: str) -> float | None:
  """Returns a device's peak bfloat16 FLOP/s, or None if unknown.

  Args:
    device_kind: `jax.Device.device_kind`, such as 'TPU v5 lite'.
  """
  for prefix, peak in _PEAKS:
    if device_kind.lower().startswith(prefix.lower()):
      return peak
  return None


def _walk(
  jaxpr: core.Jaxpr, times: float, totals: Totals, outside: str
) -> bool:
  """Adds the FLOPs of a jaxpr run `times` times. Returns whether exact."""
  exact = True
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    scope = '/'.join(filter(None, (outside, str(eqn.source_info.name_stack))))
    if name == 'cond':
      exact &= _walk_branches(eqn.params, times, totals, scope)
    elif name.startswith('scatter'):
      # The inner jaxpr combines two scalars.
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
  """Adds the default branch of a platform-dependent cond, else the largest."""
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
  """Yields the jaxprs that an equation calls, with their repetitions."""
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
  """Returns the FLOPs of an equation without inner jaxprs."""
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
  """Counts products with elements, not with padding or dilation holes."""
  params = eqn.params
  numbers = params['dimension_numbers']
  lhs, rhs = map(_shape, eqn.invars[:2])
  out = _shape(eqn.outvars[0])
  taps = 1
  specs = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
  for i, (a, b, c) in enumerate(zip(*(x[2:] for x in specs), strict=True)):
    taps *= _taps(
      lhs[a],
      rhs[b],
      out[c],
      params['window_strides'][i],
      params['padding'][i][0],
      params['lhs_dilation'][i],
      params['rhs_dilation'][i],
    )
  channels_in = rhs[numbers.rhs_spec[1]]
  channels_out = out[numbers.out_spec[1]]
  batch = out[numbers.out_spec[0]]
  # With batch groups, each output depends on one group of the input's batch,
  # and `batch` is the size of one group.
  return 2 * batch * channels_out * channels_in * taps


def _taps(size, kernel, out, stride, pad, lhs_dilation, rhs_dilation) -> int:
  """Counts pairs of output position and kernel tap with an input element."""
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
