"""Outputs that fail and recover while a run goes on."""

import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from dreamer_tpu.metrics import jsonl, output, process
from dreamer_tpu.metrics import writers as module
from dreamer_tpu.metrics.output import Output
from dreamer_tpu.metrics.writers import Writers
from tests.helpers import program, tensorboard
from tests.helpers.clock import Clock
from tests.helpers.disk import Disk

STANDINS = pathlib.Path(__file__).resolve().parents[1] / 'helpers/standins'
LIMIT = 600


@pytest.fixture
def wandb(tmp_path, monkeypatch):
  """Folder that controls the stand-in for W&B."""
  monkeypatch.syspath_prepend(STANDINS)
  folder = tmp_path / 'service'
  folder.mkdir()
  monkeypatch.setenv('WANDB_STANDIN', str(folder))
  monkeypatch.setattr(module, '_START', LIMIT)
  return folder


def wait_for(condition):
  deadline = time.monotonic() + LIMIT
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.005)


def wait_for_failures(out, count):
  """Waits until a number of tries have failed, and their pause has begun."""

  def failed():
    with out._changed:  # Held from the count to the pause.
      return out.failures == count

  wait_for(failed)


def child(name):
  """Returns the process of an output; other tests may have left theirs."""
  (found,) = [x for x in multiprocessing.active_children() if x.name == name]
  return found


def warnings(caplog):
  return [x.getMessage() for x in caplog.records if x.levelname == 'WARNING']


def steps(path):
  return [json.loads(line)['step'] for line in path.read_text().splitlines()]


def write(writers, *steps, **metrics):
  for step in steps:
    writers.write(step, {'x': step, **metrics}, frames=step, update=step)


def test_a_full_disk(disk, caplog):
  clock, path = Clock(), disk.path / 'metrics.jsonl'
  file = Output(
    'metrics.jsonl',
    jsonl.JsonLines(path, 0),
    disk.path,
    keep=10_000,
    at_once=True,
    clock=clock,
  )

  def add(*numbers):
    for step in numbers:
      line = jsonl.line({'step': step, 'text': 'x' * 965})
      assert 980 < len(line) < 1000
      file.write(line, 1000)

  add(*range(10))
  disk.fill()
  add(*range(10, 25))  # 10 to 13 may fit into the last page.
  written = steps(path)  # Only whole lines.
  assert written == list(range(len(written)))
  assert len(written) < 15
  (line,) = warnings(caplog)
  assert line.startswith('metrics.jsonl cannot be written (')
  assert 'No space left on device' in line or 'File too large' in line
  assert f' free on {disk.path}' in line
  assert line.endswith('; trying again in 1 s; lines are kept.')
  for failures in (2, 3, 4):
    clock.advance(output.LONGEST_PAUSE)
    add(24)
    wait_for_failures(file, failures)
  assert steps(path) == written

  disk.empty()
  clock.advance(output.LONGEST_PAUSE)
  add(25)
  wait_for(lambda: len(warnings(caplog)) == 2)
  assert file.lost > 0
  assert warnings(caplog)[1] == (
    f'metrics.jsonl: written again; lines lost: {file.lost}.'
  )
  found = steps(path)
  assert found[: len(written)] == written
  assert found[len(written) :] == [*range(18, 25), 24, 24, 24, 25][-11:]
  assert len(found) + file.lost == 25 + 4

  path.unlink()
  add(26)
  assert 'the file was removed' in warnings(caplog)[2]
  clock.advance(output.LONGEST_PAUSE)
  add(27)
  wait_for(lambda: path.exists() and steps(path) == [26, 27])
  file.end()
  file.join()
  assert len(warnings(caplog)) == 4


class Broken:
  """Fails always."""

  def __init__(self, clock):
    self.tries = []
    self._clock = clock

  def write(self, item):
    self.tries.append(self._clock())
    raise ConnectionError('no connection')

  def close(self):
    pass


def test_another_try_before_the_end_of_a_pause(disk, caplog):
  clock, path = Clock(), disk.path / 'scores.jsonl'
  file = Output(
    'scores.jsonl', jsonl.JsonLines(path, 0), disk.path, keep=10_000,
    at_once=True, clock=clock,
  )  # fmt: skip
  disk.fill()
  for step in range(10):
    file.write(jsonl.line({'step': step, 'text': 'x' * 965}), 1000)
  wait_for(lambda: file.failures)
  disk.empty()
  assert len(steps(path)) < 10
  file.retry()  # The clock stands still.
  wait_for(lambda: len(warnings(caplog)) == 2)  # 'written again'
  assert steps(path) == list(range(10))
  file.end()
  file.join()
  assert not file.lost


def test_pauses_grow(caplog):
  clock = Clock()
  broken = Broken(clock)
  out = Output('W&B', broken, '.', keep=1000, at_once=True, clock=clock)
  out.write(0, 1)
  expected = [0.0]
  for pause in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600):
    clock.advance(pause - 0.5)
    out.write(0, 1)
    clock.advance(0.5)
    out.write(0, 1)
    expected.append(expected[-1] + pause)
    wait_for_failures(out, len(expected))
  assert broken.tries == expected
  out.end()
  out.join()
  assert warnings(caplog) == [
    'W&B cannot be written (no connection); trying again in 1 s; lines are '
    'kept.',
    'W&B: not completed (no connection); lines lost: 25.',
  ]
  assert out.lost == 25
  assert out.failures == len(expected) + 1  # The last try.


class Unsteady:
  """Fails every third time."""

  def __init__(self):
    self.items = []
    self._calls = 0

  def write(self, item):
    self._calls += 1
    if self._calls % 3 == 0:
      raise ConnectionError('no connection')
    self.items.append(item)

  def close(self):
    raise ConnectionError('no farewell')


def test_an_output_that_writes_a_few_lines_at_a_time(caplog):
  unsteady = Unsteady()
  out = Output('W&B', unsteady, '.', keep=1000, at_once=True, clock=Clock())
  for i in range(10):
    out.write(i, 1)
  assert unsteady.items == [0, 1]
  out.end()
  out.join()
  assert unsteady.items == list(range(10))
  assert out.lost == 0
  assert warnings(caplog)[1:] == [
    'W&B: written again; lines lost: 0.',
    'W&B: not completed (no farewell); lines lost: 0.',
  ]


class Stuck:
  """Does not return until it is told to."""

  def __init__(self):
    self.began, self.go = threading.Event(), threading.Event()
    self.items = []

  def write(self, item):
    self.began.set()
    assert self.go.wait(LIMIT)
    self.items.append(item)

  def close(self):
    pass


@pytest.mark.parametrize('recovers', [True, False])
def test_an_output_that_hangs(monkeypatch, caplog, recovers):
  monkeypatch.setattr(output, 'PATIENCE', 0.2)
  stuck = Stuck()
  out = Output('scores.jsonl', stuck, '.', keep=10, at_once=True)
  begin = time.monotonic()
  out.write(0, 1)
  assert stuck.began.wait(LIMIT)  # From now on, it is not dropped.
  for i in range(1, 1000):
    out.write(i, 1)
  assert 0.2 <= time.monotonic() - begin < 5
  (line,) = warnings(caplog)
  assert 'cannot be written (no answer in 0.2 s)' in line
  if recovers:
    stuck.go.set()
    wait_for(lambda: len(warnings(caplog)) == 2)
    assert stuck.items == [0, *range(990, 1000)]
  out.end()
  out.join(LIMIT if recovers else 0.2)
  lost = 1000 - len(stuck.items)
  assert out.lost == lost
  assert warnings(caplog)[1:] == [
    f'scores.jsonl: written again; lines lost: {lost}.'
    if recovers
    else 'scores.jsonl: not completed (no answer in 0.2 s); lines lost: 1000.'
  ]
  stuck.go.set()


def test_items_that_cannot_be_written_do_not_stop_the_others(tmp_path, caplog):
  good = np.zeros((2, 8, 8, 3), np.uint8)
  with Writers(tmp_path, ('jsonl',)) as writers:
    write(writers, 1, bad=good.astype(np.float32), good=good)
    write(writers, 2, bad=good.astype(np.float32))
  (line,) = warnings(caplog)
  assert line.startswith('videos: lost a line (a video is uint8')
  assert (tmp_path / 'videos/good.gif').exists()
  assert writers.stats() == {'output/failures': 2, 'output/lost': 2}


def test_the_process_of_event_files_is_killed(tmp_path, caplog):
  clock = Clock()
  with Writers(
    tmp_path, ('jsonl', 'tensorboard'), resume_step=0, clock=clock
  ) as writers:
    files = writers._outputs['event files']
    write(writers, 1, 2)
    assert files.wait(LIMIT)
    child('_EventFiles').kill()
    write(writers, 3)
    wait_for(lambda: files.error)
    write(writers, 4)
    assert steps(tmp_path / 'metrics.jsonl') == [1, 2, 3, 4]
    clock.advance(1)
    write(writers, 5)
    wait_for(lambda: files.failures == 1 and not files.error)
  events = tensorboard.read(tmp_path).Tensors('x')
  assert [event.step for event in events] == [1, 2, 3, 4, 5]
  failure, recovery = warnings(caplog)
  assert failure == (
    'event files cannot be written (its process died); trying again in 1 s; '
    'lines are kept.'
  )
  assert recovery == 'event files: written again; lines lost: 0.'


def test_wandb_without_a_connection(tmp_path, wandb, caplog, monkeypatch):
  monkeypatch.setattr(output, 'END', 1.0)
  clock, logged = Clock(), wandb / 'logged'

  def hangs(seconds):
    """Calls that hang end after seconds; others may take their time."""
    monkeypatch.setattr(process, 'CALL', seconds)

  def logs(lines, *expected):
    hangs(LIMIT)

    def done():
      clock.advance(output.LONGEST_PAUSE)
      with out._changed:
        out._changed.notify_all()
      return len(warnings(caplog)) == lines

    wait_for(done)
    assert steps(logged) == list(expected)

  (wandb / 'down').touch()
  with Writers(tmp_path, ('jsonl', 'wandb'), clock=clock) as writers:
    out = writers._outputs['Weights & Biases']
    write(writers, 1, 2)
    (line,) = warnings(caplog)
    assert line == (
      'Weights & Biases cannot be written (Error: Run initialization has timed '
      'out after 90.0 sec.); trying again in 1 s; lines are kept.'
    )
    (wandb / 'down').unlink()
    logs(2, 1, 2)
    (wandb / 'hangs').touch()
    hangs(0.5)
    write(writers, 3)
    wait_for(lambda: out.error)
    write(writers, 4)
    assert 'its process gave no answer in 0.5 s' in warnings(caplog)[2]
    (wandb / 'hangs').unlink()
    logs(4, 1, 2, 3, 4)
    hangs(0.5)
    # The pipe holds less than the next item.
    os.kill(child('_Run').pid, signal.SIGSTOP)
    write(writers, 5, image=np.zeros((600, 600, 3), np.uint8))
    wait_for(lambda: out.error)
    assert 'its process gave no answer' in warnings(caplog)[4]
    begin = time.monotonic()
    (wandb / 'hangs').touch()
  assert time.monotonic() - begin < 20
  assert 'lines lost: 1' in warnings(caplog)[-1]
  assert steps(tmp_path / 'metrics.jsonl') == [1, 2, 3, 4, 5]
  assert steps(logged) == [1, 2, 3, 4]
  # Its last process would use memory and CPU during other tests.
  (wandb / 'hangs').unlink()
  out._thread.join(LIMIT)
  assert not out._thread.is_alive()


PRINTS = """
import sys, time
from dreamer_tpu.metrics.terminal import Terminal
terminal = Terminal()
terminal.log_status('first')
sys.stdin.read()
for _ in range(3):
  terminal.log_status('later')
print(terminal.outputs and terminal.outputs[0].failures, file=sys.stderr)
"""


def test_a_terminal_that_is_gone():
  run = subprocess.Popen(
    [sys.executable, '-c', PRINTS],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert 'first' in run.stdout.readline()
  run.stdout.close()
  _, errors = run.communicate()
  assert run.returncode == 0
  line, failures = errors.splitlines()
  assert 'stdout cannot be written (Broken pipe); trying again in 1 s' in line
  assert int(failures) >= 1


def test_a_closed_stdout():
  done = subprocess.run(
    ['bash', '-c', 'exec "$0" -c "$1" >&-', sys.executable, PRINTS],
    stdin=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    check=True,
  )
  assert done.stderr == '[]\n'


def test_wandb_without_images(tmp_path, wandb, caplog):
  with Writers(tmp_path, ('wandb',)) as writers:
    write(writers, 1, image=np.zeros((8, 8, 3), np.uint8))
    write(writers, 2, values=np.zeros(3))
  (line,) = warnings(caplog)
  assert line.startswith('Weights & Biases: lost a line (ValueError: Attribute')
  assert steps(wandb / 'logged') == [2]


@pytest.fixture
def large_disk(tmp_path):
  """A disk for all that a run writes in the minutes of its longest pauses."""
  disk = Disk(tmp_path / 'disk', '64m')
  yield disk
  disk.release()


def test_a_run_whose_outputs_fail(large_disk, wandb):
  """No connection at the start, a reader of stdout that ends, a full disk."""
  (wandb / 'down').touch()
  disk = large_disk
  logdir = disk.path / 'run'
  metrics = logdir / 'metrics.jsonl'
  run = program.Program(
    logdir,
    '--config=configs/gym.py:debug',
    '--config.metrics.outputs=log,jsonl,tensorboard,wandb',
    '--config.run.steps=1e6',
    '--config.run.log_every=0.5',
    '--config.run.save_every=0',
    '--config.run.report_every=0',
    prefix=('bash', '-c', 'set -o pipefail; "$@" | head -n 1', '_'),
    PYTHONPATH=str(STANDINS),
  )

  def says(*texts):
    run.wait_for(lambda: all(x in '\n'.join([*run._err]) for x in texts))

  run.wait_for(lambda: metrics.exists() and len(program.read(metrics)) > 1)
  (wandb / 'down').unlink()
  says('Weights & Biases: written again')
  if disk.own:
    # Its process is not among the first to start.
    run.wait_for(lambda: any(logdir.glob('events.out.tfevents.*')))
    names = 'metrics.jsonl', 'event files'
    disk.fill()
    says(*(f'{name} cannot be written (No space left' for name in names))
    disk.empty()
    says(*(f'{name}: written again; lines lost: 0' for name in names))
  (trainer,) = [
    process
    for process in psutil.Process(run.process.pid).children(recursive=True)
    if f'--logdir={logdir}' in process.cmdline()
    and process.parent().name() != process.name()
  ]
  trainer.terminate()
  ended = run.end()
  assert ended.code == 75, ended
  assert ended.out.count('\n') == 1
  said = '\n'.join(ended.err)
  assert 'Traceback' not in said
  assert said.count('stdout cannot be written (Broken pipe)') == 1
  assert said.count('Weights & Biases cannot be written (Error: Run init') == 1
  written = steps(metrics)
  assert written[-1] == program.state(logdir)['step']
  assert written == sorted(set(written))
  assert steps(wandb / 'logged') == written
  events = tensorboard.read(logdir).Tensors('perf/goodput')
  assert [event.step for event in events] == written
  last = program.read(metrics)[-1]
  assert last['output/failures'] > 2
  assert last['output/lost'] == 0
