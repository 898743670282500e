"""Environments: one suite per file, one wrapper chain, one way of stepping."""

from dreamer_tpu.envs.registry import make_vector, register, spaces
from dreamer_tpu.envs.vector import VectorEnv

__all__ = ['VectorEnv', 'make_vector', 'register', 'spaces']
