"""Experience: stored once, sampled as sequences, saved incrementally.

NumPy only: nothing here knows of JAX, environments or the algorithm.
"""

from dreamer_tpu.replay.buffer import Replay
from dreamer_tpu.replay.sampling.mixture import Sampling
from dreamer_tpu.replay.saving.files import ReplayCorrupt, prune
from dreamer_tpu.replay.stream import Stream

__all__ = ['Replay', 'ReplayCorrupt', 'Sampling', 'Stream', 'prune']
