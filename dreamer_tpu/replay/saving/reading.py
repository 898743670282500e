"""Reads the steps of a saved replay one chunk at a time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from etils import epath

from dreamer_tpu.errors import UserError
from dreamer_tpu.replay.chunks import Arrays, Field, latent_keys, parse_spec
from dreamer_tpu.replay.saving import files, loading
from dreamer_tpu.replay.saving.ledger import STEPS


class Piece(NamedTuple):
  """Rows of a chunk in a file.

  Attributes:
    name: Name of the file, relative to the replay directory.
    start, stop: First row of the chunk, and row after the last.
    row: Row of the file that holds the first one.
    arrays: Places of the arrays in the file, by key.
  """

  name: str
  start: int
  stop: int
  row: int
  arrays: Mapping[str, files.Stored]


def saved_streams(
  directory: epath.PathLike,
  manifests: Sequence[Mapping[str, Any]],
) -> Iterator[Iterator[Arrays]]:
  """Yields the saved steps by stream, old streams first, without loading all.

  A stream may begin within an episode, whose first steps were dropped. A step
  before one with is_first is the last of its episode, even if is_last is not
  set: then the episode was abandoned.

  Args:
    directory: The replay directory.
    manifests: Manifests of all shards of one checkpoint.

  Yields:
    Iterators over the chunks of a stream, arrays [steps, ...] by key, without
    latents.

  Raises:
    UserError: Another version has saved the replay, or a run that goes on has
      deleted a file meanwhile.
    ReplayCorrupt: A file is missing or corrupt, or a step is in no file.
  """
  for manifest in sorted(manifests, key=lambda manifest: manifest['shard']):
    loading.check_format(manifest)
    spec = {k: (tuple(x), dtype) for k, (dtype, x) in manifest['spec'].items()}
    fields = parse_spec(spec)
    pieces = _find_pieces(directory, manifest, list(fields))
    for key in latent_keys(list(fields)):
      del fields[key]
    for chunks in manifest['streams']:
      yield _read_stream(directory, chunks, pieces, fields)


def _find_pieces(
  directory: epath.PathLike, manifest: Mapping[str, Any], keys: list[str]
) -> dict[int, list[Piece]]:
  """Verifies the files of a shard; returns the pieces of chunks by serial."""
  pieces: dict[int, list[Piece]] = {}
  for entry in sorted(manifest['files'], key=lambda entry: entry['index']):
    if entry['kind'] != STEPS:
      continue
    runs, arrays = files.locate(directory, entry)
    places = dict(zip(keys, arrays, strict=True))
    row = 0
    for serial, start, stop in runs.tolist():
      piece = Piece(entry['name'], start, stop, row, places)
      pieces.setdefault(serial, []).append(piece)
      row += stop - start
  return pieces


def _read_stream(
  directory: epath.PathLike,
  chunks: Sequence[Sequence[int]],
  pieces: Mapping[int, Sequence[Piece]],
  fields: Mapping[str, Field],
) -> Iterator[Arrays]:
  for serial, fill, _ in chunks:
    arrays = {
      k: np.empty((fill, *x.shape), x.stored) for k, x in fields.items()
    }
    missing = np.ones(fill, bool)
    for piece in pieces.get(serial, ()):
      rows = slice(piece.start, min(fill, piece.stop))
      count = len(missing[rows])
      with _open(epath.Path(directory) / piece.name) as file:
        for key, array in arrays.items():
          array[rows] = files.read_rows(
            file, piece.arrays[key], piece.row, piece.row + count
          )
      missing[rows] = False
    if missing.any():
      raise files.ReplayCorrupt(
        f'the manifest of the replay in {directory} names no file for '
        f'{missing.sum()} of its steps; restore an earlier checkpoint'
      )
    yield {key: arrays[key].view(x.dtype) for key, x in fields.items()}


def _open(path: epath.Path) -> BinaryIO:
  try:
    return path.open('rb')
  except FileNotFoundError:
    raise UserError(
      f'replay file {path} was there and is gone: its run goes on and drops '
      'old steps; stop the run first, or read a copy of it'
    ) from None
