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


def test_video_refuses_other_arrays():
  with pytest.raises(ValueError, match='uint8'):
    video.encode_gif(np.zeros((2, 4, 4, 3), np.float32))
  with pytest.raises(ValueError, match='channels'):
    video.encode_gif(np.zeros((2, 4, 4, 4), np.uint8))
