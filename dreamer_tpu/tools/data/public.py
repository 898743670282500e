"""Replay folders of the public implementation.

A file holds consecutive steps of one environment. Its name has the time, its
identifier, that of the file that follows, and the number of steps.
"""

import re
from collections.abc import Iterator

from etils import epath

from dreamer_tpu.tools.data.episodes import Arrays, Entry, Names, cut
from dreamer_tpu.tools.data.npz import load

_NAME = re.compile(r'(?P<time>\d{8}T\d{6}\w*)-(?P<id>\w+)-(?P<next>\w+)-\d+')


class PublicReplay:
  """Episodes of a replay folder, environment after environment; see `Source`.

  The end of a stream is an episode that was not finished.
  """

  agents = True
  sampled = True
  spaces = None

  def __init__(self, folder: epath.Path, names: Names):
    self.name = str(folder)
    self._folder = folder
    self._known = names

  def read(self) -> Iterator[Entry]:
    """Yields the episodes."""
    names = [_NAME.fullmatch(x.stem) for x in self._folder.glob('*.npz')]
    files = {name['id']: name for name in names if name}
    following = {name['next'] for name in files.values()}
    heads = [x for x in files.values() if x['id'] not in following]
    for head in sorted(heads, key=lambda name: name[0]):
      chain = []
      name: re.Match | None = head
      while name is not None:
        chain.append(f'{name[0]}.npz')
        name = files.get(name['next'])
      yield from cut(self._parts(chain), self._known)

  def _parts(
    self, names: list[str]
  ) -> Iterator[tuple[str, Arrays | Exception]]:
    for name in names:
      try:
        yield name, load(self._folder / name)
      except Exception as error:  # A broken file can raise anything.
        yield name, error


def is_replay(folder: epath.Path) -> bool:
  """Returns whether a folder is a replay of the public implementation."""
  return any(_NAME.fullmatch(path.stem) for path in folder.glob('*.npz'))
