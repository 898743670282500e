"""Environments: suites, conversion of their spaces, vector stepping."""

from dreamer_tpu.envs.conversion import Conversion, Rules
from dreamer_tpu.envs.registry import (
  check,
  is_functional,
  make_functional,
  make_rules,
  make_vector,
  register,
  spaces,
)
from dreamer_tpu.envs.vector import VectorEnv

__all__ = [
  'Conversion',
  'Rules',
  'VectorEnv',
  'check',
  'is_functional',
  'make_functional',
  'make_rules',
  'make_vector',
  'register',
  'spaces',
]
