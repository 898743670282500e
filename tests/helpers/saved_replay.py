"""Saved replays, and what is on the disk then."""

import json
import pathlib

import numpy as np

from tests.helpers.replay_model import Envs, fresh_latents, make


def save(replay, directory):
  """Saves, and gives the manifest as it comes back from a file."""
  return json.loads(json.dumps(replay.save(directory)))


def saved_replay(directory):
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
  """Every step that is in a sequence, in a form that can be compared."""
  rows = set()
  _, ids = replay.sample(4000, online=False)
  starts = np.unique(ids[:, 0])
  data, _ = replay.gather(starts, 0, replay.length)
  for index in np.ndindex(data['reward'].shape):
    keys = ('image', 'vector', 'reward', 'latent/deter', 'latent/stoch')
    rows.add(b''.join(data[key][index].tobytes() for key in keys))
  return rows


def files_under(directory):
  return {
    str(path.relative_to(directory))
    for path in pathlib.Path(directory).rglob('*')
    if path.is_file()
  }


def stamp(replay):
  """The bytes of all that is stored."""
  return {
    (serial, key): array[: chunk.fill].tobytes()
    for serial, chunk in replay._store.chunks.items()
    for key, array in chunk.arrays.items()
  }
