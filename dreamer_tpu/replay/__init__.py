"""Replay buffer: stores steps, samples sequences, saves incrementally.

Depends on NumPy only, not on JAX, environments or the algorithm.
"""

from dreamer_tpu.replay.buffer import Replay
from dreamer_tpu.replay.sampling import Sampling
from dreamer_tpu.replay.saving.files import ReplayCorrupt, prune
from dreamer_tpu.replay.saving.snapshot import Snapshot
from dreamer_tpu.replay.stream import Stream

__all__ = ['Replay', 'ReplayCorrupt', 'Sampling', 'Snapshot', 'Stream', 'prune']
