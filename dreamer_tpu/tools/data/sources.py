"""Finds the reader of a source that the user names."""

from etils import epath

from dreamer_tpu.checkpoint import layout
from dreamer_tpu.errors import UserError
from dreamer_tpu.tools.data import logdirs, minari_sets, npz, public, rlds
from dreamer_tpu.tools.data.episodes import Names, Source

KINDS = (
  'minari:ID, a folder of a Minari dataset, rlds:NAME, a folder of *.npz '
  'episodes, a replay folder of the public implementation, or a logdir'
)


def open_source(text: str, names: Names) -> Source:
  """Returns the episodes of a source.

  Args:
    text: Source as the user names it; see `KINDS`.
    names: Names that are known from the environment.

  Raises:
    UserError: There is no such source, or its package is missing.
  """
  if text.startswith(minari_sets.PREFIX):
    return minari_sets.MinariSet(text)
  if text.startswith(rlds.PREFIX):
    return rlds.RldsSet(text.removeprefix(rlds.PREFIX))
  folder = epath.Path(text).expanduser()
  if not folder.exists():
    raise UserError(f"There is no source '{text}'. Sources: {KINDS}.")
  if minari_sets.is_set(folder):
    return minari_sets.MinariSet(text)
  if rlds.is_set(folder):
    return rlds.RldsSet(text)
  if public.is_replay(folder):
    return public.PublicReplay(folder, names)
  if layout.steps(folder / 'checkpoints'):
    return logdirs.Logdir(folder)
  if not any(folder.glob('*.npz')):
    raise UserError(f"'{text}' holds no episodes. Sources: {KINDS}.")
  return npz.NpzFolder(folder, names)
