"""Event files, read with TensorBoard's own readers."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from dreamer_tpu.metrics.writers import Writers
from tests.helpers import tensorboard

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 24, 16, 1), np.uint8)
CONFIG = {
  'task': 'dmc_walker_walk',
  'agent': {'opt': {'lr': 4e-5}, 'size': (96, 96), 'none': None, 'on': True},
}


def wait(writers):
  """Waits for the start of the process, longer than the end of a run does."""
  assert writers._outputs['event files'].wait(600)


@pytest.fixture(scope='module')
def events(tmp_path_factory):
  """Events of a run that crashed at step 300 and resumed from step 200."""
  logdir = tmp_path_factory.mktemp('run')
  outputs = ('jsonl', 'tensorboard')
  writers = Writers(logdir, outputs, CONFIG, resume_step=0)
  writers.write(
    100,
    {
      'train/loss/dyn': np.float32(1.5),
      'actions': np.linspace(-1, 1, 1000),
      'openloop/image': FRAMES,
      'picture': FRAMES[0],
    },
    frames=400,
    update=10,
  )
  # Nothing waits for the other process, which takes seconds to start.
  started = list(logdir.glob('events.out.tfevents.*'))
  writers.write(200, {'train/loss/dyn': 1.25}, frames=800, update=20)
  writers.write(300, {'train/loss/dyn': 99.0}, frames=1200, update=30)
  writers.write(400, {'train/loss/dyn': np.nan}, frames=1600, update=40)
  wait(writers)
  writers.close()
  tensorboard.age(logdir)
  tensorboard.write_empty(logdir)
  tensorboard.age(logdir)
  with Writers(logdir, outputs, CONFIG, resume_step=200) as writers:
    writers.write(350, {'train/loss/dyn': 1.0}, frames=1400, update=35)
    wait(writers)
  assert not started
  return tensorboard.read(logdir)


def test_files(events):
  names = os.listdir(events.path)
  assert sum(name.startswith('events.out.tfevents.') for name in names) == 3
  assert not [name for name in names if name.endswith('.partial')]


def values(events, name):
  from tensorboard.util import tensor_util

  return [
    (event.step, tensor_util.make_ndarray(event.tensor_proto))
    for event in events.Tensors(name)
  ]


def test_events_of_the_crash_are_dropped(events):
  scalars = [(step, float(x)) for step, x in values(events, 'train/loss/dyn')]
  assert scalars == [(100, 1.5), (200, 1.25), (350, 1.0)]


def test_histogram(events):
  ((step, buckets),) = values(events, 'actions')
  assert step == 100
  assert buckets[:, 2].sum() == 1000
  assert buckets[0, 0] == -1
  assert buckets[-1, 1] == 1


def test_video(events):
  ((step, (width, height, gif)),) = values(events, 'openloop/image')
  assert (step, width, height) == (100, b'16', b'24')
  plugin = events.SummaryMetadata('openloop/image').plugin_data.plugin_name
  assert plugin == 'images'
  with Image.open(io.BytesIO(gif)) as image:
    assert (image.format, image.n_frames, image.size) == ('GIF', 6, (16, 24))


def test_image(events):
  ((_, (_, _, png)),) = values(events, 'picture')
  with Image.open(io.BytesIO(png)) as image:
    np.testing.assert_array_equal(np.asarray(image), FRAMES[0, ..., 0])


def test_hparams(events):
  from tensorboard.plugins.hparams import plugin_data_pb2

  metadata = events.SummaryMetadata('_hparams_/session_start_info')
  content = plugin_data_pb2.HParamsPluginData.FromString(
    metadata.plugin_data.content
  )
  hparams = content.session_start_info.hparams
  assert hparams['task'].string_value == 'dmc_walker_walk'
  assert hparams['agent.opt.lr'].number_value == pytest.approx(4e-5)
  assert hparams['agent.size'].string_value == '(96, 96)'
  assert hparams['agent.none'].string_value == 'None'
  assert hparams['agent.on'].bool_value is True
