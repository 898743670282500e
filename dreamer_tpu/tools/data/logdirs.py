"""Episodes in the replay of a run."""

from collections.abc import Iterator
from typing import Any

from etils import epath

from dreamer_tpu.checkpoint import layout, shard
from dreamer_tpu.envs import Conversion
from dreamer_tpu.errors import UserError
from dreamer_tpu.replay import saved_streams
from dreamer_tpu.tools.data.episodes import Entry, Names, cut


class Logdir:
  """Episodes of the newest checkpoint, stream after stream; see `Source`.

  They are those of all hosts.

  Args:
    logdir: Directory of a run.
    evaluate: Whether to read its evaluation replay.

  Attributes:
    conversion: Conversion of the spaces of its environments.
    config: Configuration of the run.
  """

  agents = True
  sampled = True
  spaces = None

  def __init__(self, logdir: epath.Path, *, evaluate: bool = False):
    self.name = str(logdir)
    run, manifests = layout.read_newest(
      logdir, lambda step: (layout.read_run(step), layout.read_manifests(step))
    )
    name, folder = (shard.EVAL, 'replay_eval') if evaluate else ('', 'replay')
    saved = shard.select(manifests.values(), name)
    if not saved:
      raise UserError(f"'{logdir}' holds no {folder}.")
    self.conversion = Conversion.from_json(run['conversion'])
    self.config: dict[str, Any] = run['config']
    spaces = run['spaces']
    self._names = Names(list(spaces['obs']), list(spaces['act']))
    self._folder, self._manifests = logdir / folder, saved

  def read(self) -> Iterator[Entry]:
    """Yields the episodes."""
    streams = saved_streams(self._folder, self._manifests)
    for i, stream in enumerate(streams):
      parts = ((f'stream {i}, chunk {j}', x) for j, x in enumerate(stream))
      yield from cut(parts, self._names)
