"""Weights & Biases, offline: the files of its runs."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dreamer_tpu.metrics import video
from dreamer_tpu.metrics.writers import Writers
from tests.helpers.wandb_files import history, records

CONFIG = {'task': 'dmc_walker_walk', 'agent': {'opt': {'lr': 4e-5}}}


@pytest.fixture
def offline(monkeypatch):
  pytest.importorskip('wandb', reason='the package wandb is not installed')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_API_KEY', 'secret' * 7)


def write(logdir, steps, resume_step):
  with Writers(logdir, ('wandb',), CONFIG, resume_step=resume_step) as writers:
    for step in steps:
      metrics = {'train/loss/total': 1 / step, 'hist': np.arange(10.0)}
      writers.write(step, metrics, frames=step, update=step)
      writers.write(step, {'report/x': float(step)}, frames=step, update=step)


def test_one_run_that_never_steps_back(tmp_path, offline):
  write(tmp_path, (100, 200, 300), 0)
  # Killed, and resumed from a checkpoint of step 150.
  write(tmp_path, (220, 300, 380), 150)
  lines = history(tmp_path)
  assert len({name for name, _, _ in lines}) == 1
  steps = [step for _, step, _ in lines]
  assert steps == [100, 200, 300, 380]
  for _, step, values in lines:
    assert values['train/loss/total'] == pytest.approx(1 / step)
    assert values['report/x'] == step
    assert values['hist._type'] == 'histogram'
    assert sum(values['hist.values']) == 10


def test_configuration_and_videos_but_no_secrets(tmp_path, offline):
  frames = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
  with Writers(tmp_path, ('wandb',), CONFIG) as writers:
    writers.write(5, {'openloop/image': frames}, frames=5, update=1)
  (gif,) = (tmp_path / 'wandb').glob('offline*/files/media/**/*.gif')
  assert gif.read_bytes() == video.encode_gif(frames)
  (path,) = (tmp_path / 'wandb').glob('offline*/*.wandb')
  config = {
    update.key: json.loads(update.value_json)
    for record in records(path)
    if record.WhichOneof('record_type') == 'run'
    for update in record.run.config.update
  }
  assert CONFIG.items() <= config.items()
  for path in tmp_path.rglob('*'):
    assert not path.is_file() or b'secretsecret' not in path.read_bytes(), path


def test_refusal_is_one_line(tmp_path, offline):
  # W&B reads its environment once in a process.
  code = f"""if True:
    from dreamer_tpu.errors import UserError
    from dreamer_tpu.metrics.writers import Writers
    try:
      Writers({str(tmp_path)!r}, ('wandb',))
    except UserError as error:
      print('error:', error)
  """
  env = {k: v for k, v in os.environ.items() if not k.startswith('WANDB_')}
  done = subprocess.run(
    [sys.executable, '-c', code],
    env={**env, 'HOME': str(tmp_path)},
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=True,
  )
  (line,) = done.stdout.splitlines()
  assert line.startswith("error: metrics.outputs: 'wandb' cannot start (")
  assert 'wandb login' in line
  assert 'WANDB_MODE=offline' in line
