"""Random number generators whose state can be saved as JSON."""

from typing import Any

import numpy as np


def make_rng(seed: int | np.random.SeedSequence) -> np.random.Generator:
  """Returns a PCG64 generator."""
  return np.random.Generator(np.random.PCG64(seed))


def rng_state(rng: np.random.Generator) -> dict[str, Any]:
  """Returns the state of a generator; 128-bit integers become strings."""
  state = rng.bit_generator.state
  return {**state, 'state': {k: str(v) for k, v in state['state'].items()}}


def set_rng_state(rng: np.random.Generator, state: dict[str, Any]) -> None:
  """Sets a generator to a state returned by `rng_state`."""
  numbers = {k: int(v) for k, v in state['state'].items()}
  rng.bit_generator.state = {**state, 'state': numbers}
