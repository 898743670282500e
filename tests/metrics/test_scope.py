"""Columns of Scope, read by Scope's own reader."""

import numpy as np
import pytest

from dreamer_tpu.metrics.writers import Writers

scope = pytest.importorskip(
  'scope', reason='the package scope is not installed'
)

NAMES = {'train/loss/dyn', 'openloop/image', 'report/image'}


def write(logdir, steps, resume_step):
  frames = np.zeros((4, 33, 48, 3), np.uint8)
  frames[:, :, 24:] = 200
  with Writers(logdir, ('scope',), resume_step=resume_step) as writers:
    for step in steps:
      metrics = {
        'train/loss/dyn': np.float32(1 / step),
        'hist': np.arange(10.0),
        'openloop/image': frames,
        'report/image': frames[0],
      }
      writers.write(step, metrics, frames=4 * step, update=step)


def test_numbers_images_and_videos(tmp_path):
  write(tmp_path, (100, 200), 0)
  reader = scope.Reader(tmp_path)
  assert set(reader.keys()) == NAMES
  steps, values = reader['train/loss/dyn']
  assert steps.tolist() == [100, 200]
  assert values.tolist() == [float(np.float32(1 / step)) for step in steps]
  steps, files = reader['openloop/image']
  assert steps.tolist() == [100, 200]
  video = reader.load('openloop/image', files[-1])
  assert video.shape == (4, 34, 48, 3)
  assert np.abs(video[:, :32, 26:].astype(int) - 200).max() < 10
  steps, files = reader['report/image']
  image = reader.load('report/image', files[0])
  assert image.shape == (33, 48, 3)
  assert image[0, -1].tolist() == [200, 200, 200]


def test_resume_drops_later_and_broken_rows(tmp_path):
  write(tmp_path, (100, 200, 300), 0)
  with (tmp_path / 'scope/train-loss-dyn.float').open('ab') as file:
    file.write(b'half')
  write(tmp_path, (260, 350), 250)
  reader = scope.Reader(tmp_path)
  for name in NAMES:
    assert reader[name][0].tolist() == [100, 200, 260, 350]
  assert len(list((tmp_path / 'scope/openloop-image.mp4').glob('*.mp4'))) == 4
