"""Experience: stored once, sampled as sequences, saved incrementally.

NumPy only: nothing here knows of JAX, environments or the algorithm.
"""

from dreamer_tpu.replay.buffer import Replay
from dreamer_tpu.replay.files import ReplayCorrupt, prune
from dreamer_tpu.replay.limiter import Ratio
from dreamer_tpu.replay.mixture import Sampling
from dreamer_tpu.replay.stream import Stream

__all__ = ['Ratio', 'Replay', 'ReplayCorrupt', 'Sampling', 'Stream', 'prune']
