"""Saves small replays and compares their contents."""

import json
import pathlib

import numpy as np

from tests.helpers.replay_model import Envs, fresh_latents, make


def save(replay, directory):
  """Saves a replay and returns the manifest as read back from JSON."""
  return json.loads(json.dumps(replay.snapshot(directory).write()))


def saved_replay(directory):
  """Returns a replay, manifests of two saves, and the last files by kind."""
  replay, envs = make(), Envs(3)
  rng = np.random.default_rng(0)
  for _ in range(40):
    replay.add(envs.step())
  first = save(replay, directory)
  ids = replay.sample(4)[1]
  replay.update(ids, fresh_latents(ids.shape, rng))
  second = save(replay, directory)
  kinds = {f['kind']: directory / f['name'] for f in second['files']}
  assert set(kinds) == {'steps', 'latents'}
  return replay, first, second, kinds


def contents(replay):
  """Returns the set of all steps that are in a sequence."""
  rows = set()
  _, ids = replay.sample(4000, online=False)
  starts = np.unique(ids[:, 0])
  data, _ = replay.gather(starts, 0, replay.length)
  for index in np.ndindex(data['reward'].shape):
    keys = ('image', 'vector', 'reward', 'latent/deter', 'latent/stoch')
    rows.add(b''.join(data[key][index].tobytes() for key in keys))
  return rows


def stored_streams(replay):
  """Returns the steps by stream and chunk, arrays [steps, ...] by key."""
  return [
    [
      {
        key: chunk.arrays[key][: chunk.fill].view(field.dtype)
        for key, field in replay._fields.items()
      }
      for chunk in chunks
    ]
    for chunks in replay._store.streams().values()
  ]


def files_under(directory):
  """Returns the relative paths of all files."""
  return {
    str(path.relative_to(directory))
    for path in pathlib.Path(directory).rglob('*')
    if path.is_file()
  }


def stamp(replay):
  """Returns the bytes of all stored steps, by chunk and key."""
  return {
    (serial, key): array[: chunk.fill].tobytes()
    for serial, chunk in replay._store.chunks.items()
    for key, array in chunk.arrays.items()
  }
