"""FLOPs against counts by hand and the compiler's cost analysis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from dreamer_tpu.metrics import flops


def shape(*dims, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(dims, dtype)


def compiled_flops(fn, *args):
  return jax.jit(fn).lower(*args).compile().cost_analysis()['flops']


def test_product_by_hand():
  result = flops.count(jnp.dot, shape(32, 128), shape(128, 64))
  assert result.total == result.matmul == 2 * 32 * 128 * 64
  assert result.exact


def test_compiler_options():
  fn = jax.jit(jnp.dot, compiler_options={'xla_cpu_enable_fast_math': False})
  assert flops.count(fn, shape(4, 8), shape(8, 3)).total == 2 * 4 * 8 * 3


def test_batched_product():
  def fn(x, w):
    return jnp.einsum('bti,tio->bto', x, w)

  args = shape(4, 8, 16), shape(8, 16, 5)
  assert flops.count(fn, *args).total == 2 * 4 * 8 * 16 * 5


@pytest.mark.parametrize(
  ('stride', 'padding', 'dilation', 'kernel'),
  [
    (1, 'SAME', 1, 5),
    (2, 'SAME', 1, 4),
    (2, 'VALID', 1, 5),
    (1, [(2, 2), (1, 1)], 2, 3),
  ],
)
def test_convolution_as_the_compiler(stride, padding, dilation, kernel):
  def fn(x, w):
    return jax.lax.conv_general_dilated(
      x,
      w,
      (stride, stride),
      padding,
      lhs_dilation=(dilation, dilation),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  args = shape(3, 12, 10, 4), shape(kernel, kernel, 4, 6)
  assert flops.count(fn, *args).total == compiled_flops(fn, *args)
  # Gradients dilate and pad.
  grad = jax.grad(lambda x, w: (fn(x, w) ** 2).sum(), (0, 1))
  mine = flops.count(grad, *args).total
  assert mine == pytest.approx(compiled_flops(grad, *args), rel=0.05)


def test_small_convolution_by_hand():
  def fn(x, w):
    return jax.lax.conv(x, w, (1, 1), 'SAME')

  args = shape(1, 1, 3, 3), shape(1, 1, 3, 3)
  # The taps inside: 4 at corners, 6 at edges, 9 in the middle.
  assert flops.count(fn, *args).total == 2 * (4 * 4 + 4 * 6 + 9)


def test_network_as_the_compiler():
  def loss(params, x):
    for w in params:
      x = jax.nn.silu(x @ w)
    return (x**2).mean()

  args = [shape(256, 256)] * 3, shape(64, 256)
  step = jax.grad(loss)
  mine = flops.count(step, *args)
  # Three products forward, three for weights, two for activations.
  assert mine.matmul == 8 * 2 * 64 * 256 * 256
  assert mine.total == pytest.approx(compiled_flops(step, *args), rel=0.02)


def test_lengths_of_scans_multiply():
  def body(x, _):
    x, _ = jax.lax.scan(lambda y, w: (y @ w, None), x, jnp.ones((3, 8, 8)))
    return x, None

  def fn(x):
    return jax.lax.scan(body, x, None, length=10)[0]

  result = flops.count(fn, shape(4, 8))
  assert result.matmul == 10 * 3 * 2 * 4 * 8 * 8
  assert result.exact

  def loop(x):
    return jax.lax.fori_loop(0, 7, lambda _, y: y @ y, x)

  assert flops.count(loop, shape(8, 8)).matmul == 7 * 2 * 8**3


def test_scan_as_the_unrolled_program():
  def scanned(params, x):
    def cell(x, _):
      return (jnp.tanh(x @ params), None)

    return jax.lax.scan(cell, x, None, 6)[0].sum()

  def unrolled(params, x):
    for _ in range(6):
      x = jnp.tanh(x @ params)
    return x.sum()

  args = shape(128, 128), shape(32, 128)
  scanned, unrolled = (jax.grad(fn, (0, 1)) for fn in (scanned, unrolled))
  mine = flops.count(scanned, *args)
  assert mine.matmul == flops.count(unrolled, *args).matmul
  assert mine.matmul == 6 * 3 * 2 * 32 * 128 * 128
  assert mine.total == pytest.approx(compiled_flops(unrolled, *args), rel=0.02)
  # XLA counts the body once.
  assert compiled_flops(scanned, *args) < mine.total / 3


def test_while_is_flagged_and_counted_once():
  def fn(x):
    return jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ y, x)

  result = flops.count(fn, shape(8, 8))
  assert result.matmul == 2 * 8**3
  assert not result.exact


def test_cond_takes_the_larger_branch():
  def fn(flag, x):
    return jax.lax.cond(flag, lambda y: y @ y @ y, lambda y: y @ y, x)

  args = shape(dtype=jnp.bool_), shape(8, 8)
  assert flops.count(fn, *args).matmul == 2 * 2 * 8**3


def test_the_default_branch_of_platforms_counts():
  def fn(x):
    return jax.lax.platform_dependent(
      x, cpu=lambda y: y @ y @ y, default=lambda y: y @ y
    )

  assert flops.count(fn, jnp.ones((4, 4))).matmul == 2 * 4**3


def test_dead_code_is_free():
  def fn(x):
    _ = jax.jit(lambda y: y @ y)(x)
    return jax.vjp(jnp.matmul, x, x)[1](x)[0]

  assert flops.count(fn, shape(8, 8)).matmul == 2 * 8**3


def test_wrapped_functions_are_entered():
  @jax.custom_vjp
  def custom(x):
    return x @ x

  custom.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x,))
  for fn in (custom, jax.jit(custom), jax.checkpoint(custom)):
    assert flops.count(fn, shape(8, 8)).matmul == 2 * 8**3
  remat = jax.value_and_grad(jax.checkpoint(lambda x: jnp.sin(x @ x).sum()))
  # Forward, again before the backward, and two for the gradient.
  assert flops.count(remat, shape(8, 8)).matmul == 4 * 2 * 8**3


@pytest.mark.parametrize('devices', [1, 4])
def test_sharded_map_counts_all_devices(devices):
  fn = jax.shard_map(
    lambda x, w: x @ w,
    mesh=AbstractMesh((devices,), ('data',), axis_types=(AxisType.Auto,)),
    in_specs=(P('data'), P()),
    out_specs=P('data'),
  )
  assert flops.count(fn, shape(8, 16), shape(16, 4)).matmul == 2 * 8 * 16 * 4


def test_moving_data_is_free():
  def fn(x):
    return jnp.concatenate([x.T.reshape(4, 4)[::2], jnp.zeros((2, 4))])

  assert flops.count(fn, shape(2, 8)).total == 0

  def gather(x, i):
    return x.at[i].add(1.0)

  args = shape(100), shape(7, dtype=jnp.int32)
  assert flops.count(gather, *args).total == 7


def test_peak():
  assert flops.peak_flops('TPU v5 lite') == 197e12
  assert flops.peak_flops('TPU v5p') == 459e12
  assert flops.peak_flops('TPU v5') == 459e12
  assert flops.peak_flops('TPU v6 lite') == 918e12
  assert flops.peak_flops('TPU v4') == 275e12
  assert flops.peak_flops('NVIDIA H200') == 989e12
  assert flops.peak_flops('NVIDIA A100-SXM4-80GB') == 312e12
  assert flops.peak_flops(jax.devices('cpu')[0].device_kind) is None


def test_arrays_work_as_arguments():
  assert flops.count(lambda x: x + 1, np.ones(5, np.float32)).total == 5
