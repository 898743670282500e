"""Where activations live when a model is spread over devices.

The agent names axes; whoever compiles it for several devices says what they
mean. Without that, arrays stay as they are. Whoever compiles it for one CPU
says that too, for its caches.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax

# From an array and one logical name, or None, per dimension; None altogether
# for a copy on every device.
Axes = tuple[str | None, ...]
Place = Callable[[jax.Array, Axes | None], jax.Array]

_place: contextvars.ContextVar[Place | None] = contextvars.ContextVar(
  'place', default=None
)
_one_cpu: contextvars.ContextVar[bool] = contextvars.ContextVar(
  'one_cpu', default=False
)


@contextlib.contextmanager
def using(place: Place | None, *, one_cpu: bool = False) -> Iterator[None]:
  """While a program is traced, arrays are placed by `place`, if any.

  Args:
    place: Where the program is for several devices.
    one_cpu: The program is for one CPU device.
  """
  tokens = _place.set(place), _one_cpu.set(one_cpu)
  try:
    yield
  finally:
    _place.reset(tokens[0])
    _one_cpu.reset(tokens[1])


def spread() -> bool:
  """Whether the program is for several devices."""
  return _place.get() is not None


def one_cpu() -> bool:
  """Whether the program is for one CPU device."""
  return _one_cpu.get()


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """The same array, split as its axes are, where devices share a model.

  Args:
    x: Any array.
    axes: 'rows' of the batch, 'images' for rows that devices which share a
      model share out among them too, names of parameters' axes, None for what
      stays whole, or 'any' for what may be as it is.
  """
  place = _place.get()
  return x if place is None else place(x, axes)


def whole(x: jax.Array) -> jax.Array:
  """The same array on every device: what follows needs no communication."""
  place = _place.get()
  return x if place is None else place(x, None)


def by_inputs(kernel: jax.Array, axis: str) -> jax.Array:
  """A kernel [inputs, units] split by inputs, named `axis`, not by units.

  Said in two steps so that it moves, as does its gradient, in its own dtype;
  XLA would take the float32 parameter and its moments there and back.
  """
  return constrain(constrain(kernel, None, 'units'), axis, None)


def settled(x: jax.Array) -> jax.Array:
  """The same array; for one CPU device, computed before what takes it.

  Else XLA may write its broadcast to memory, many times as large.
  """
  return jax.lax.optimization_barrier(x) if one_cpu() else x


def by_row(fn: Callable, *args: Any) -> Any:
  """`fn(*args)`; for one CPU device, of a row of the batch at a time.

  What a row's images become on their way stays in caches, and its memory is
  used again by the next row.

  Args:
    fn: Of trees [B, ...] to trees [B, ...], every row by itself.
    *args: What it takes.
  """
  if not one_cpu():
    return fn(*args)

  def one(row):
    rows = fn(*jax.tree.map(lambda x: x[None], row))
    return jax.tree.map(lambda x: x[0], rows)

  return jax.lax.map(one, args)
