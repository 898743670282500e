"""A run that is stopped by a signal and resumed, in all of its outputs."""

import collections
import dataclasses
import importlib.util
import math
import os
import signal

import numpy as np
import pytest

from tests.helpers import program, tensorboard
from tests.helpers.wandb_files import history

ARGS = (
  '--config=configs/gym.py:debug',
  '--config.run.log_every=-1',
  '--config.run.report_every=0',
  # A save during the run could be late on a busy machine.
  '--config.run.save_every=0',
)
# Steps per update: a batch of 64 steps at a ratio of 8.
INTERVAL = 64 // 8
COUNTERS = ('step', 'frames', 'update', 'time')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """One process of the run, and the logdir after it."""

  ended: program.Ended
  state: dict
  metrics: list[dict]


def stop(logdir, *args):
  """Runs main.py until it has made some steps more, then signals it."""
  lines = logdir / 'metrics.jsonl'
  before = program.read(lines)[-1]['step'] if lines.exists() else 0
  run = program.Program(logdir, *ARGS, *args, WANDB_MODE='offline')
  run.wait_for(
    lambda: (
      lines.exists()
      and any(line['step'] > before + 100 for line in program.read(lines))
    )
  )
  # To the whole process group, as Ctrl-C and schedulers do it.
  os.killpg(run.process.pid, signal.SIGTERM)
  return run.end()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The logdir and the parts of a run that was stopped twice."""
  logdir = tmp_path_factory.mktemp('run')
  outputs = ['log', 'jsonl', 'tensorboard']
  spec = importlib.util.find_spec('wandb')
  if spec and spec.origin:
    outputs.append('wandb')
  written = f'--config.metrics.outputs={",".join(outputs)}'
  parts = []

  def add(ended):
    metrics = program.read(logdir / 'metrics.jsonl')
    state = program.state(logdir)
    parts.append(Part(ended=ended, state=state, metrics=metrics))

  forever = '--config.run.steps=1e6'
  add(stop(logdir, written, forever))
  add(stop(logdir, written, forever, '--config.script=parallel'))
  last = f'--config.run.steps={parts[-1].state["step"] + 100}'
  add(program.run(logdir, *ARGS, written, last, WANDB_MODE='offline'))
  return logdir, parts


def of_jsonl(logdir):
  """Returns {name: [(step, value)]} of the scalars in metrics.jsonl."""
  curves = collections.defaultdict(list)
  for line in program.read(logdir / 'metrics.jsonl'):
    for name in line.keys() - set(COUNTERS):
      curves[name].append((line['step'], line[name]))
  return curves


def of_tensorboard(logdir, names):
  """Returns the same from TensorBoard's reader."""
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
  """Returns the same from the offline runs of W&B, which share one id."""
  lines = history(logdir)
  assert len({run for run, _, _ in lines}) == 1
  return {
    name: [(step, values[name]) for _, step, values in lines if name in values]
    for name in names
  }


def number(value):
  """Converts a value: NaN is null in metrics.jsonl and a string in W&B."""
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


def test_a_signal_saves_and_stops(run):
  logdir, parts = run
  for part, behind in zip(parts, (0, 1), strict=False):
    assert part.ended.code == 75, part.ended.err
    assert part.ended.err == []
    assert 'stopped' in part.ended.out
    state, last = part.state, part.metrics[-1]
    assert last['step'] == last['replay/steps'] == state['step']
    # An actor in its own thread may be late with the steps of the next log.
    assert 0 <= state['update'] - last['update'] <= behind
    assert state['policy_steps'] == state['step'] / 2
  assert program.steps(logdir)[-1] == parts[2].state['step']


def test_the_resumed_run_reaches_its_end(run):
  logdir, parts = run
  before, after = parts[1:]
  assert after.ended.code == 0, after.ended.err
  total = before.state['step'] + 100
  assert f'step {before.state["step"]:,}' in after.ended.out
  assert 'Filling' not in after.ended.out
  assert after.metrics[: len(before.metrics)] == before.metrics
  new = after.metrics[len(before.metrics) :]
  assert new[0]['step'] <= before.state['step'] + 16
  assert new[-1]['step'] == new[-1]['replay/steps'] == total
  state = after.state
  assert state['policy_steps'] == total / 2
  made = state['update'] - before.state['update'] - before.state['owed']
  assert abs(made - 100 / INTERVAL) <= 1
  # Time in the earlier processes counts too.
  assert state['timer']['productive'] > before.state['timer']['productive']
  assert state['timer']['began'] == parts[0].state['timer']['began']
  assert (logdir / 'config.0.json').exists()


def test_curves_continue_in_all_outputs(run):
  logdir, parts = run
  curves = of_jsonl(logdir)
  for name, points in curves.items():
    steps = [step for step, _ in points]
    assert all(np.diff(steps) > 0), name
  steps = [step for step, _ in curves['replay/steps']]
  assert {part.state['step'] for part in parts} <= set(steps)
  for first, last in ((0, 0), (1, 2)):  # Those in one thread.
    begin = parts[first].state['step'] if first else 0
    end = parts[last].state['step']
    gaps = np.diff([x for x in steps if begin <= x <= end])
    assert max(gaps) <= INTERVAL
  # The actor may be ahead of what is logged.
  assert all(value >= step for step, value in curves['replay/steps'])
  check_agree(curves, of_tensorboard(logdir, curves))
  if importlib.util.find_spec('wandb') and list(logdir.glob('wandb/*')):
    check_agree(curves, of_wandb(logdir, curves))
