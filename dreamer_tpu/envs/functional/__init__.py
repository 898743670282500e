"""Environments that are JAX functions, stepped inside compiled programs."""

from dreamer_tpu.envs.functional.combined import Combined, Screen
from dreamer_tpu.envs.functional.environment import FunctionalEnv
from dreamer_tpu.envs.functional.host import HostVector
from dreamer_tpu.envs.functional.vector import Batch, Carry, Vector, keys
from dreamer_tpu.envs.functional.wrappers import Converted, Repeat, TimeLimit

__all__ = [
  'Batch',
  'Carry',
  'Combined',
  'Converted',
  'FunctionalEnv',
  'HostVector',
  'Repeat',
  'Screen',
  'TimeLimit',
  'Vector',
  'keys',
]
