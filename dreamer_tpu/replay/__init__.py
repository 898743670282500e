"""Replay buffer: stores steps, samples sequences, saves incrementally.

Depends on NumPy only, not on JAX, environments or the algorithm, and can be
used by itself; README.md has an example.

Buffer: `Replay` stores the steps of parallel environments, `Stream` iterates
over batches of its sequences.
Sampling: `Sampling` mixes uniform, prioritized and recent sequences.
Saving: `Replay.snapshot` returns a `Snapshot` that writes only what is new,
`Replay.load` restores it, `prune` deletes files that are no longer needed.
`ImportWriter` saves steps from elsewhere in the same format, `saved_streams`
reads saved steps without loading them all.
"""

from dreamer_tpu.replay.buffer import Replay, step_bytes
from dreamer_tpu.replay.sampling import Sampling
from dreamer_tpu.replay.saving.files import ReplayCorrupt, prune
from dreamer_tpu.replay.saving.importing import ImportWriter
from dreamer_tpu.replay.saving.reading import saved_streams
from dreamer_tpu.replay.saving.snapshot import Snapshot
from dreamer_tpu.replay.stream import Stream

__all__ = [
  'ImportWriter',
  'Replay',
  'ReplayCorrupt',
  'Sampling',
  'Snapshot',
  'Stream',
  'prune',
  'saved_streams',
  'step_bytes',
]
