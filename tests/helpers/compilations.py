"""Counts the programs that XLA compiles."""

import contextlib

from jax import monitoring

COMPILED = '/jax/core/compile/backend_compile_duration'


@contextlib.contextmanager
def compilations():
  """Yields a list that grows by one with every program that XLA compiles."""
  seen = []

  def listen(name, *_, **__):
    if name == COMPILED:
      seen.append(name)

  monitoring.register_event_duration_secs_listener(listen)
  try:
    yield seen
  finally:
    monitoring.unregister_event_duration_listener(listen)
