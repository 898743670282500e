"""Files of a log directory, read by other libraries."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import numpy as np
import pytest
from PIL import Image

from dreamer_tpu.errors import UserError
from dreamer_tpu.metrics import jsonl, video
from dreamer_tpu.metrics import writers as module
from dreamer_tpu.metrics.writers import Writers, check_installed
from tests.helpers.clock import Clock


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def python(code, **env):
  return subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', **env},
    capture_output=True,
    text=True,
    check=False,
  )


def test_jsonl_content(tmp_path):
  with Writers(tmp_path / 'run', ('jsonl',)) as writers:
    before = time.time()
    writers.write(
      1200,
      {
        'train/loss/dyn': np.float32(0.1),
        'replay/items': np.int64(7),
        'fps/policy': 12.5,
        'hist': np.arange(3.0),
        'openloop/image': np.zeros((2, 8, 8, 3), np.uint8),
      },
      frames=4800,
      update=30,
    )
    stats = {'epstats/x/max': 2.0, 'epstats/x/avg': 1.0, 'episode/score': 3.0}
    writers.write_score(1234, np.float32(-20.5), 1000, 'train', stats)
    # Each write is on disk at once, without a flush.
    (line,) = lines(tmp_path / 'run/metrics.jsonl')
  assert before <= line.pop('time') <= time.time()
  assert line == {
    'step': 1200,
    'frames': 4800,
    'update': 30,
    'train/loss/dyn': float(np.float32(0.1)),
    'replay/items': 7,
    'fps/policy': 12.5,
  }
  assert lines(tmp_path / 'run/scores.jsonl') == [
    {
      'step': 1234,
      'episode/score': -20.5,
      'episode/length': 1000,
      'mode': 'train',
      'epstats/x/max': 2.0,
    }
  ]


def test_non_finite_numbers_are_valid_json(tmp_path):
  with Writers(tmp_path, ('jsonl',)) as writers:
    values = {
      'a': np.nan,
      'b': np.float32(-np.inf),
      'c': float('inf'),
      'd': 1.0,
    }
    writers.write(1, values, frames=1, update=0)

  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  text = (tmp_path / 'metrics.jsonl').read_text()
  line = json.loads(text, parse_constant=refuse)
  assert [line[name] for name in 'abcd'] == [None, None, None, 1.0]


def test_resume_drops_later_and_broken_lines(tmp_path):
  with Writers(tmp_path, ('jsonl',), resume_step=0) as writers:
    for step in (100, 200, 300, 400):
      writers.write(step, {'x': step}, frames=step, update=step)
      writers.write_score(step + 50, step, 10, 'train')
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 150, "x": 1')
  with Writers(tmp_path, ('jsonl',), resume_step=250) as writers:
    writers.write(260, {'x': 260}, frames=260, update=260)
  steps = [line['step'] for line in lines(tmp_path / 'metrics.jsonl')]
  assert steps == [100, 200, 260]
  steps = [line['step'] for line in lines(tmp_path / 'scores.jsonl')]
  assert steps == [150, 250]
  assert not list(tmp_path.glob('*.partial'))
  # Without a step everything whole stays.
  with Writers(tmp_path, ('jsonl',)):
    pass
  assert len(lines(tmp_path / 'metrics.jsonl')) == 3


def test_a_line_survives_a_killed_process(tmp_path):
  result = python(
    """
    import os, signal
    from dreamer_tpu.metrics.writers import Writers
    writers = Writers(os.environ['LOGDIR'], ('jsonl',))
    writers.write(1, {'x': 1.0}, frames=1, update=1)
    os.kill(os.getpid(), signal.SIGKILL)
    """,
    LOGDIR=str(tmp_path),
  )
  assert result.returncode == -9
  assert lines(tmp_path / 'metrics.jsonl')[0]['x'] == 1.0


def test_object_stores_get_whole_files(tmp_path, monkeypatch):
  monkeypatch.setattr(jsonl, 'is_local', lambda path: False)
  path, clock = tmp_path / 'metrics.jsonl', Clock()
  path.write_text('{"step": 1}\n{"step": 9}\n')
  file = jsonl.JsonLines(path, 5, clock)
  clock.advance(59)
  file.write(b'{"step": 6}\n')
  assert lines(path) == [{'step': 1}]
  clock.advance(2)
  path.rename(tmp_path / 'gone')
  path.mkdir()  # An upload fails, and is tried again with the same line.
  with pytest.raises(OSError, match='directory'):
    file.write(b'{"step": 7}\n')
  path.rmdir()
  file.write(b'{"step": 7}\n')
  assert lines(path) == [{'step': 1}, {'step': 6}, {'step': 7}]
  file.write(b'{"step": 8}\n')
  assert len(lines(path)) == 3
  file.close()
  assert jsonl.read(path) == [{'step': x} for x in (1, 6, 7, 8)]


def test_videos_are_files(tmp_path):
  frames = np.random.default_rng(0).integers(0, 256, (5, 24, 16, 3), np.uint8)
  with Writers(tmp_path, ('jsonl',)) as writers:
    writers.write(1, {'openloop/image': frames}, frames=1, update=1)
  with Image.open(tmp_path / 'videos/openloop/image.gif') as image:
    assert image.format == 'GIF'
    assert image.n_frames == 5
    assert image.size == (16, 24)
  assert not list((tmp_path / 'videos/openloop').glob('*.partial'))


def test_errors_name_the_cause(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r"file/run' cannot be written.*--logdir"):
    Writers(tmp_path / 'file/run', ('jsonl',))
  with (
    Writers(tmp_path, ('jsonl',)) as writers,
    pytest.raises(ValueError, match="'matrix' has shape"),
  ):
    writers.write(1, {'matrix': np.zeros((2, 2))}, frames=1, update=1)


def test_no_tensorflow_without_tensorboard(tmp_path):
  result = python(
    """
    import os, sys
    from dreamer_tpu.metrics import aggregate, flops, system, terminal
    from dreamer_tpu.metrics import timer, video
    from dreamer_tpu.metrics.writers import Writers
    with Writers(os.environ['LOGDIR'], ('log', 'jsonl'), {'a': 1}) as writers:
      writers.write(1, {'x': 1.0}, frames=1, update=1)
      writers.write_score(1, 1.0, 1, 'train')
    print(sorted({'tensorflow', 'clu', 'tensorboard'} & set(sys.modules)))
    """,
    LOGDIR=str(tmp_path),
  )
  assert result.stdout.strip() == '[]', result.stderr


def test_videos_do_not_pile_up(tmp_path, monkeypatch):
  videos, most, count, size = [], 0, 16, 16 * 32 * 32 * 3
  monkeypatch.setattr(module, 'KEEP_METRICS', 3 * size)
  go, write_gif = threading.Event(), video.write_gif

  def write(*args):
    assert go.wait(600)
    write_gif(*args)

  monkeypatch.setattr(video, 'write_gif', write)
  rng = np.random.default_rng(0)
  with Writers(tmp_path, ('jsonl',)) as writers:
    for i in range(count):
      frames = rng.integers(0, 256, (16, 32, 32, 3), np.uint8)
      videos.append(weakref.ref(frames))
      writers.write(i, {f'openloop/{i}': frames}, frames=i, update=i)
      del frames
      most = max(most, sum(x() is not None for x in videos))
      if i == 2:  # Any more would wait for room.
        go.set()
  assert 3 <= most <= 5
  assert len(list((tmp_path / 'videos/openloop').glob('*.gif'))) == count


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
  # A folder of that name, as W&B itself makes, is no package.
  (tmp_path / 'wandb').mkdir()
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [str(tmp_path)])
  for name in ('wandb', 'clu'):
    monkeypatch.delitem(sys.modules, name, raising=False)
  check_installed(['log', 'jsonl'])
  with pytest.raises(UserError, match=r"'wandb' needs .*pip install wandb"):
    check_installed(['wandb'])
  with pytest.raises(UserError, match=r"'tensorboard' needs .*pip install clu"):
    check_installed(['log', 'tensorboard'])
