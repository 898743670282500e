"""Walks the equations of a jaxpr."""

from collections.abc import Iterator
from typing import Any


def equations(jaxpr: Any) -> Iterator[Any]:
  """Yields all equations, those of inner functions and loops included."""
  for eqn in jaxpr.eqns:
    yield eqn
    for value in eqn.params.values():
      for inner in value if isinstance(value, (tuple, list)) else (value,):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from equations(inner)


def stacked(loop: Any) -> list[tuple[int, ...]]:
  """Shapes of the arrays that a scan stacks over its steps."""
  shapes = [var.aval.shape for var in loop.outvars]
  return shapes[loop.params['num_carry'] :]
