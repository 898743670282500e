"""Tests atomic writes and the test for a local path."""

import pytest

from dreamer_tpu import paths


@pytest.mark.parametrize(
  ('path', 'expected'),
  [('/a/b', True), ('a', True), ('gs://bucket/a', False)],
)
def test_a_url_is_not_local(path, expected):
  assert paths.is_local(path) == expected


@pytest.mark.parametrize(
  'data', ['näme', 'näme'.encode(), [b'n', memoryview('äme'.encode())]]
)
def test_content_replaces_the_file_whole(tmp_path, data):
  path = tmp_path / 'file'
  path.write_text('old and longer')
  paths.atomic_write(path, data)
  assert path.read_text(encoding='utf8') == 'näme'
  assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
  def parts():
    yield b'half'
    raise OSError('disk full')

  path = tmp_path / 'file'
  path.write_text('old')
  with pytest.raises(OSError, match='disk full'):
    paths.atomic_write(path, parts())
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_the_error_that_is_raised(tmp_path):
  with pytest.raises(FileNotFoundError, match='tmp-file'):
    paths.atomic_write(tmp_path / 'missing' / 'file', b'')
