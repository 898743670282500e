"""One switch for the form that all ops take.

An op has a reference form of a few lines, and faster forms with the same
results. A program selects the form with `using` while it is traced:

  with backend.using(backend.Backend(backend.Form.CPU)):
    jax.jit(update).lower(...)
"""

import contextlib
import contextvars
import dataclasses
import enum
from collections.abc import Callable, Iterator

import jax

# One logical axis name, or None, per dimension of an array.
Axes = tuple[str | None, ...]
# Constrains the sharding of an array; axes of None replicate it.
Constrain = Callable[[jax.Array, Axes | None], jax.Array]


class Form(enum.Enum):
  """The form of all ops of a program.

  Attributes:
    REFERENCE: The definitions, differentiated by JAX.
    ACCELERATOR: For TPUs, GPUs, and several devices of any kind.
    CPU: For one CPU device.
  """

  REFERENCE = 'reference'
  ACCELERATOR = 'accelerator'
  CPU = 'cpu'


@dataclasses.dataclass(frozen=True)
class Backend:
  """The form of ops and the sharding of activations.

  Attributes:
    form: Selects the implementation of every op.
    constrain: Applies sharding constraints; None on a single device.
  """

  form: Form = Form.ACCELERATOR
  constrain: Constrain | None = None


_DEFAULT = Backend()
_current = contextvars.ContextVar('backend', default=_DEFAULT)


@contextlib.contextmanager
def using(backend: Backend) -> Iterator[None]:
  """Sets the backend of the functions that are traced inside of it."""
  token = _current.set(backend)
  try:
    yield
  finally:
    _current.reset(token)


def form() -> Form:
  """Returns the form that ops take in the program being traced."""
  return _current.get().form


def constrain() -> Constrain | None:
  """Returns the sharding constraint in force, None on a single device."""
  return _current.get().constrain
