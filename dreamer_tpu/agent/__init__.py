"""The algorithm: pure functions over a Flax NNX model."""

from dreamer_tpu.agent.agent import Agent
from dreamer_tpu.agent.spaces import Space

__all__ = ['Agent', 'Space']
