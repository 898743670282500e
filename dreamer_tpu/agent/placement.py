"""Where activations live when a model is spread over devices.

The agent names axes; whoever compiles it for several devices says what they
mean. Without that, arrays stay as they are.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax

# From an array and one logical name, or None, per dimension; None altogether
# for a copy on every device.
Axes = tuple[str | None, ...]
Place = Callable[[jax.Array, Axes | None], jax.Array]

_place: contextvars.ContextVar[Place | None] = contextvars.ContextVar(
  'place', default=None
)


@contextlib.contextmanager
def using(place: Place | None) -> Iterator[None]:
  """While a program is traced, arrays are placed by `place`, if any."""
  token = _place.set(place)
  try:
    yield
  finally:
    _place.reset(token)


def spread() -> bool:
  """Whether the program is for several devices."""
  return _place.get() is not None


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
