"""Curves of a run that is stopped and resumed, in all of its outputs."""

import collections
import importlib.util
import math
import os
import signal

import numpy as np
import pytest

from tests.helpers import program, tensorboard
from tests.metrics.test_wandb import history

ARGS = (
  '--config=configs/gym.py:debug',
  '--config.run.log_every=-1',
  '--config.run.report_every=0',
)
# Steps of an update: a batch of 64 steps at a ratio of 8, of 2 environments.
INTERVAL = 64 // 8
COUNTERS = ('step', 'frames', 'update', 'time')


def of_jsonl(logdir):
  """{name: [(step, value)]} of the scalars in metrics.jsonl."""
  curves = collections.defaultdict(list)
  for line in program.read(logdir / 'metrics.jsonl'):
    for name in line.keys() - set(COUNTERS):
      curves[name].append((line['step'], line[name]))
  return curves


def of_tensorboard(logdir, names):
  """The same as TensorBoard's reader has them."""
  from tensorboard.util import tensor_util

  events = tensorboard.read(logdir)
  return {
    name: [
      (event.step, tensor_util.make_ndarray(event.tensor_proto).item())
      for event in events.Tensors(name)
    ]
    for name in names
  }


def of_wandb(logdir, names):
  """The same in the offline runs of W&B, which must have one id."""
  lines = history(logdir)
  assert len({run for run, _, _ in lines}) == 1
  return {
    name: [(step, values[name]) for _, step, values in lines if name in values]
    for name in names
  }


def number(value):
  """NaN is null in metrics.jsonl and a word at W&B."""
  return math.nan if value is None else float(value)


def check_agree(curves, others):
  for name, points in curves.items():
    assert [step for step, _ in others[name]] == [step for step, _ in points]
    np.testing.assert_allclose(
      [number(value) for _, value in others[name]],
      [number(value) for _, value in points],
      rtol=1e-6,
      err_msg=name,
    )


@pytest.mark.parametrize('script', ['train', 'parallel'])
def test_curves_go_on(tmp_path, script):
  outputs = ['log', 'jsonl', 'tensorboard']
  spec = importlib.util.find_spec('wandb')
  if spec and spec.origin:
    outputs.append('wandb')
  args = (
    *ARGS,
    f'--config.script={script}',
    f'--config.metrics.outputs={",".join(outputs)}',
  )
  lines = tmp_path / 'metrics.jsonl'
  ends = []
  for stop in (True, True, False):
    before = ends[-1] if ends else 0
    enough = before + 100
    last = f'--config.run.steps={10**6 if stop else enough}'
    run = program.Program(tmp_path, *args, last, WANDB_MODE='offline')
    if stop:
      run.wait_for(
        lambda enough=enough: (
          lines.exists()
          and any(line['step'] > enough for line in program.read(lines))
        )
      )
      os.killpg(run.process.pid, signal.SIGTERM)
    ended = run.end()
    assert ended.code == (75 if stop else 0), ended.err
    ends.append(program.state(tmp_path)['step'])

  curves = of_jsonl(tmp_path)
  for name, points in curves.items():
    steps = [step for step, _ in points]
    assert all(np.diff(steps) > 0), name
  steps = [step for step, _ in curves['replay/steps']]
  assert set(ends) <= set(steps)
  if script == 'train':
    assert max(np.diff(steps)) <= INTERVAL
  # The replay goes on as well; the actor may be ahead of what is known.
  assert all(value >= step for step, value in curves['replay/steps'])
  check_agree(curves, of_tensorboard(tmp_path, curves))
  if 'wandb' in outputs:
    check_agree(curves, of_wandb(tmp_path, curves))
