"""Tests of HLO counts on programs whose cost is known by construction."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dreamer_tpu.tools.plan import hlo
from tests.helpers import small

pytestmark = pytest.mark.skipif(
  jax.device_count() < 8, reason='needs eight devices'
)
P = PartitionSpec
STEPS, ROWS, WIDTH = 5, 16, 32


def compile_for(mesh, fn, *specs, shapes):
  """Compiles `fn` for float32 arguments with these shardings."""
  shardings = [NamedSharding(mesh, spec) for spec in specs]
  args = [
    jax.ShapeDtypeStruct(shape, jnp.float32, sharding=s)
    for shape, s in zip(shapes, shardings, strict=True)
  ]
  text = jax.jit(fn).lower(*args).compile().as_text()
  return hlo.Program(text)


def test_a_sum_in_a_loop_counts_as_often_as_the_loop_runs():
  mesh = small.make_mesh((2, 1, 4))

  def fn(x, w):
    step = lambda x, _: (jnp.tanh((x @ w) @ w.T), None)
    return jax.lax.scan(step, x, length=STEPS)[0]

  # The first product is split by columns; the second is summed over them.
  program = compile_for(
    mesh,
    fn,
    P('data'),
    P(None, 'model'),
    shapes=[(ROWS, WIDTH), (WIDTH, 4 * WIDTH)],
  )
  (found,) = program.collectives()
  assert (found.kind, found.loop, found.times) == ('all-reduce', True, STEPS)
  assert found.group == 4
  assert found.size == (ROWS // 2) * WIDTH * 4
  assert found.sent == 2 * 3 / 4 * found.size
  assert 'dot_general' in found.origin


def test_nested_loops_multiply():
  mesh = small.make_mesh((8, 1, 1))

  def total(x, _):
    return x / (1 + x.sum()), None

  def fn(x):
    inner = lambda x, _: (jax.lax.scan(total, x, length=3)[0], None)
    return jax.lax.scan(inner, x, length=STEPS)[0]

  program = compile_for(mesh, fn, P('data'), shapes=[(64,)])
  (found,) = program.collectives()
  assert (found.times, found.size, found.group) == (3 * STEPS, 4, 8)


@pytest.mark.parametrize('axes', ['data', ('data', 'model')])
def test_a_gather_counts_its_result(axes):
  mesh = small.make_mesh((2, 1, 4))
  whole = NamedSharding(mesh, P())
  fn = lambda x: jax.lax.with_sharding_constraint(x, whole) * 2
  program = compile_for(mesh, fn, P(axes), shapes=[(64, 8)])
  found = program.collectives()
  size = 64 * 8 * 4
  assert {x.kind for x in found} == {'all-gather'}
  assert max(x.size for x in found) == size
  group = 2 if axes == 'data' else 8
  assert sum(x.sent for x in found) == pytest.approx(size * (1 - 1 / group))
  assert not any(x.loop for x in found)


def test_reduce_scatter_and_permute():
  mesh = small.make_mesh((8, 1, 1))
  wrap = functools.partial(
    jax.shard_map, mesh=mesh, in_specs=P('data'), out_specs=P('data')
  )
  scatter = wrap(lambda x: jax.lax.psum_scatter(x, 'data', tiled=True))
  (found,) = compile_for(
    mesh, scatter, P('data'), shapes=[(512, 8)]
  ).collectives()
  assert (found.kind, found.size) == ('reduce-scatter', 64 * 8 * 4)
  assert found.sent == 7 / 8 * found.size
  ring = [(i, (i + 1) % 8) for i in range(8)]
  shift = wrap(lambda x: jax.lax.ppermute(x, 'data', ring))
  (found,) = compile_for(
    mesh, shift, P('data'), shapes=[(512, 8)]
  ).collectives()
  assert (found.kind, found.sent) == ('collective-permute', 64 * 8 * 4)


def test_without_collectives():
  mesh = small.make_mesh((8, 1, 1))
  program = compile_for(mesh, jnp.tanh, P('data'), shapes=[(64, 8)])
  assert program.collectives() == []


def test_bytes_of_a_loop_over_slices():
  """Each step reads its slice and the weights, and writes its result."""
  mesh = small.make_mesh((1, 1, 1))

  def fn(xs, w):
    step = lambda h, x: (jnp.tanh((h + x) @ w),) * 2
    return jax.lax.scan(step, jnp.zeros((ROWS, WIDTH)), xs)[1]

  length = 64
  shapes = [(length, ROWS, WIDTH), (WIDTH, WIDTH)]
  moved = compile_for(mesh, fn, P(), P(), shapes=shapes).hbm_bytes()
  row, weights = 4 * ROWS * WIDTH, 4 * WIDTH * WIDTH
  least = length * (2 * row + weights)
  # On CPU, intermediate results pass through memory too. Reading whole stacks
  # at each step would be 64 times as much.
  assert least <= moved <= 8 * least


def test_added_instructions_have_the_origin_of_their_user():
  """The compiler adds unnamed transpositions to gradients of convolutions."""
  mesh = small.make_mesh((1, 1, 1))

  def loss(w, x):
    with jax.named_scope('net'):
      y = jax.lax.conv_general_dilated(
        jnp.tanh(x),
        w,
        (1, 1),
        'SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )
      return jnp.square(y).sum()

  shapes = [(3, 3, 4, 8), (16, 12, 12, 4)]
  program = compile_for(mesh, jax.grad(loss), P(), P(), shapes=shapes)
  found = [*program.operations()]
  moved = sum(x.moved for x in found if 'net' in x.origin)
  assert moved == program.hbm_bytes() > 0
