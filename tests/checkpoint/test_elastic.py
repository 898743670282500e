"""Runs of several processes: elastic restores, failures of one process."""

import shutil

import pytest

from dreamer_tpu.checkpoint import layout
from tests.helpers.processes import Processes

PHASES = [(1, '1,2,2'), (2, '2,1,2'), (4, '2,2,1'), (1, '4,1,1')]


def stored(processes, event):
  """Returns the digests of all processes by step, each step once."""
  result = {}
  for lines in processes.lines:
    (line,) = [x for x in lines if x['event'] == event]
    assert not result.keys() & line['numbers'].keys()
    result |= line['numbers']
  return result


def test_one_two_four_one(tmp_path):
  agents, steps = None, {}
  for count, mesh in PHASES:
    processes = Processes('once', tmp_path, count, mesh)
    codes = processes.end(600)
    assert codes == [0] * count, processes.errors
    held = stored(processes, 'held')
    assert held == steps
    first = {x[0]['agent'] for x in processes.lines}
    assert len(first) == 1
    assert agents is None or first == agents
    agents = {x[-1]['agent'] for x in processes.lines}
    assert agents != first
    steps = stored(processes, 'saved')
    assert len(steps) == len(held) + 40 * 8
  assert len(steps) == 4 * 40 * 8


def events(processes):
  """Returns (event, step) pairs by process."""
  return [[(x['event'], x['step']) for x in y] for y in processes.lines]


@pytest.fixture(scope='module')
def saves(tmp_path_factory):
  """Two processes that save three times; process 1 fails the second save."""
  logdir = tmp_path_factory.mktemp('saves')
  (logdir / 'block').touch()
  processes = Processes('saves', logdir, 2)
  assert processes.end(600) == [0, 0], processes.errors
  return logdir, processes


def test_a_process_that_cannot_write(saves):
  logdir, processes = saves
  expected = [
    ('restored', 0),
    *(('saving', 320), ('committed', 320)),
    *(('saving', 640), ('failed', 640)),
    *(('saving', 960), ('committed', 960)),
  ]
  assert events(processes) == [expected, expected]
  assert layout.steps(logdir / 'checkpoints') == [320, 960]
  reasons = [x[4]['why'] for x in processes.lines]
  assert 'another process failed to save' in reasons[0]
  assert '0001' in reasons[1]


def test_corruption_that_one_process_finds(saves, tmp_path):
  original, first = saves
  logdir = tmp_path / 'logdir'
  shutil.copytree(original, logdir)
  older, newest = layout.steps(logdir / 'checkpoints')
  folders = [logdir / 'checkpoints' / str(x) for x in (older, newest)]
  names = [
    {file['name'] for file in layout.read_manifests(folder)['1']['files']}
    for folder in folders
  ]
  path = logdir / 'replay' / min(names[1] - names[0])
  path.write_bytes(path.read_bytes()[:-1])
  second = Processes('once', logdir, 2)
  assert second.end(600) == [0, 0], second.errors
  for index in range(2):
    (saved,) = [
      x
      for x in first.lines[index]
      if (x['event'], x['step']) == ('saving', older)
    ]
    restored = second.lines[index][0]
    assert restored == {**saved, 'event': 'restored'}
    assert any(path.name in line for line in second.errors[index])
  assert (logdir / 'checkpoints' / f'{newest}.damaged').exists()
