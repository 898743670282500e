"""GIFs, written and read back."""

import os

import numpy as np
import pytest

from dreamer_tpu.metrics import video


@pytest.mark.parametrize('channels', [1, 3])
def test_video_round_trip(tmp_path, channels):
  ramp = np.linspace(0, 255, 32).astype(np.uint8)
  frames = np.zeros((7, 32, 24, channels), np.uint8)
  frames += ramp[:, None, None]
  frames[3:5, :8] = 200  # Two equal neighbors.
  path = tmp_path / 'a/b.gif'
  video.write_gif(path, frames)
  back = video.read_gif(path)
  assert back.shape == (7, 32, 24, 3)
  assert np.abs(back.astype(int) - frames).max() <= 2
  assert os.listdir(tmp_path / 'a') == ['b.gif']


@pytest.mark.parametrize(('channels', 'images'), [(2, 2), (4, 4), (6, 2)])
def test_other_channels_are_images_side_by_side(channels, images, tmp_path):
  values = 20 * np.arange(1, channels + 1, dtype=np.uint8)
  frames = np.broadcast_to(values, (3, 16, 16, channels))
  video.write_gif(tmp_path / 'a.gif', frames)
  back = video.read_gif(tmp_path / 'a.gif')
  assert back.shape == (3, 16, 16 * images, 3)
  for i, shown in enumerate(np.split(back, images, 2)):
    expected = values[3 * i : 3 * i + 3] if images < channels else values[i]
    assert np.abs(shown.astype(int) - expected).max() <= 2


def test_video_refuses_other_arrays():
  with pytest.raises(ValueError, match='uint8'):
    video.encode_gif(np.zeros((2, 4, 4, 3), np.float32))
