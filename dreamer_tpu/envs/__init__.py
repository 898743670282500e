"""Environments: suites, conversion of their spaces, vector stepping."""

from dreamer_tpu.envs.registry import make_vector, register, spaces
from dreamer_tpu.envs.vector import VectorEnv

__all__ = ['VectorEnv', 'make_vector', 'register', 'spaces']
