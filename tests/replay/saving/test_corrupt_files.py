"""Corrupt, missing and left-over files."""

import numpy as np
import pytest

from dreamer_tpu.errors import UserError
from dreamer_tpu.replay import ReplayCorrupt, saved_streams
from tests.helpers.replay_model import Envs, fresh_latents, make
from tests.helpers.saved_replay import files_under, save, saved_replay, stamp


@pytest.mark.parametrize('kind', ['steps', 'latents'])
@pytest.mark.parametrize('fault', ['short', 'long', 'flip', 'gone', 'empty'])
def test_corrupt_files_are_named(kind, fault, tmp_path):
  replay, first, second, kinds = saved_replay(tmp_path)
  path = kinds[kind]
  data = path.read_bytes()
  if fault == 'gone':
    path.unlink()
  else:
    position = len(data) // 2
    flipped = bytes([data[position] ^ 4])
    path.write_bytes(
      {
        'short': data[:-1],
        'long': data + b'\0',
        'flip': data[:position] + flipped + data[position + 1 :],
        'empty': b'',
      }[fault]
    )
  other = make()
  with pytest.raises(ReplayCorrupt) as error:
    other.load(tmp_path, [second])
  message = str(error.value)
  if kind == 'steps':  # Read one by one, they are named alike.
    with pytest.raises(ReplayCorrupt) as alike:
      list(saved_streams(tmp_path, [second]))
    assert str(alike.value) == message
  assert path.name in message
  assert '\n' not in message
  assert len(other) == 0
  if kind == 'latents':
    # The previous save does not need the file.
    other.load(tmp_path, [first])
    assert len(other) == len(replay)


def test_missing_entries_and_manifests(tmp_path):
  _, _, manifest, _ = saved_replay(tmp_path)
  lost = manifest | {
    'files': [f for f in manifest['files'] if f['kind'] != 'steps']
  }
  with pytest.raises(ReplayCorrupt, match='names no file for 120 of its'):
    make().load(tmp_path, [lost])
  with pytest.raises(ReplayCorrupt, match='names no file for 7 of its'):
    list(map(list, saved_streams(tmp_path, [lost])))
  with pytest.raises(ReplayCorrupt, match='no replay manifest for shard 1'):
    make(shard=1).load(tmp_path, [manifest], 1)
  with pytest.raises(UserError, match='format 99'):
    make().load(tmp_path, [manifest | {'format': 99}])


def test_a_file_that_disappears_is_written_again(tmp_path):
  for kind in ('steps', 'latents'):
    replay, _, _, kinds = saved_replay(tmp_path / kind)
    kinds[kind].unlink()
    with pytest.raises(ReplayCorrupt, match='the next save writes it again'):
      save(replay, tmp_path / kind)
    other = make()
    other.load(tmp_path / kind, [save(replay, tmp_path / kind)])
    assert stamp(other) == stamp(replay)


def test_a_run_that_goes_on_deletes_a_file_while_it_is_read(tmp_path):
  replay, _, _, kinds = saved_replay(tmp_path)
  stream = next(saved_streams(tmp_path, [save(replay, tmp_path)]))
  kinds['steps'].unlink()
  with pytest.raises(UserError, match='is gone: its run goes on'):
    list(stream)


def test_leftovers_of_a_killed_run_do_no_harm(tmp_path):
  replay, first, _, _ = saved_replay(tmp_path)
  # The later saves were never committed; the run resumes from the first.
  other = make()
  other.load(tmp_path, [first])
  envs = Envs(3, seed=5)
  rng = np.random.default_rng(5)
  for _ in range(4):
    replay.add(envs.step())
    ids = replay.sample(4)[1]
    replay.update(ids, fresh_latents(ids.shape, rng))
    save(replay, tmp_path)
  before = {
    name: (tmp_path / name).read_bytes() for name in files_under(tmp_path)
  }
  (tmp_path / '0000' / 'tmp-steps-0001-00000009.npys').write_bytes(b'half')
  (tmp_path / '0000' / 'notes.txt').write_text('mine')
  # As many saves of other files, whose names would collide.
  for i in range(8):
    other.add(envs.step(restart=i == 0))
    if i:
      ids = other.sample(4)[1]
      other.update(ids, fresh_latents(ids.shape, rng))
    manifest = save(other, tmp_path)
  for name, data in before.items():
    assert (tmp_path / name).read_bytes() == data
  other.prune(tmp_path, [manifest])
  assert files_under(tmp_path) == {
    '0000/notes.txt',
    *(f['name'] for f in manifest['files']),
  }
  third = make()
  third.load(tmp_path, [manifest])
  assert stamp(third) == stamp(other)
