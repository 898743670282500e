"""Tests the layout of open-loop videos against NumPy."""

import numpy as np
import pytest

from dreamer_tpu.agent import openloop

BATCH, STEPS, HEIGHT, WIDTH = 2, 5, 8, 12


@pytest.fixture(scope='module', params=[1, 3])
def images(request):
  rng = np.random.default_rng(0)
  shape = (BATCH, STEPS, HEIGHT, WIDTH, request.param)
  truth = rng.integers(0, 256, shape).astype(np.uint8)
  prediction = rng.random(shape).astype(np.float32)
  return truth, prediction


def tile(video, row, column):
  """[T, H, W, 3] of one image of the grid."""
  return video[
    :,
    row * HEIGHT : (row + 1) * HEIGHT,
    column * WIDTH : (column + 1) * WIDTH,
  ]


def rgb(x):
  return np.repeat(x, 3, -1) if x.shape[-1] == 1 else x


def test_tiles(images):
  truth, prediction = images
  video = np.asarray(openloop.grid(truth, prediction, 2))
  assert video.shape == (STEPS, 3 * HEIGHT, BATCH * WIDTH, 3)
  assert video.dtype == np.uint8
  wide = truth.astype(np.float64)
  error = (prediction.astype(np.float64) * 255 - wide + 255) / 2
  inside = (slice(None), slice(2, -2), slice(2, -2))
  for i in range(BATCH):
    shown = rgb(truth[i])[inside]
    np.testing.assert_array_equal(tile(video, 0, i)[inside][:, 0], shown[:, 0])
    rows = {0: wide[i], 1: prediction[i] * 255.0, 2: error[i]}
    for row, expected in rows.items():
      actual = tile(video, row, i).astype(np.float64)
      keep = np.ones((HEIGHT, WIDTH), bool)
      if row == 0:
        keep[:2] = False
      if row == 2:
        keep[-2:] = False
      keep[:, :2] = keep[:, -2:] = False
      apart = np.abs(actual - rgb(expected))[:, keep]
      assert apart.max() <= 1.0001, row  # cut off to an integer


def test_borders(images):
  truth, prediction = images
  video = np.asarray(openloop.grid(truth, prediction, 2))
  colors = [openloop.GREEN] * 2 + [openloop.RED] * 3
  for step, color in enumerate(colors):
    frame = video[step]
    for part in (frame[:2], frame[-2:], frame[:, :2], frame[:, -2:]):
      assert (part == color).all()
    middle = frame[:, WIDTH - 2 : WIDTH + 2]
    assert (middle == color).all()
