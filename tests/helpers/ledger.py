"""Checks the files of runs of ledger_env.py: nothing is lost or repeated."""

import itertools
import json
from typing import NamedTuple

import jax
import numpy as np

from dreamer_tpu.checkpoint import checksums, layout
from dreamer_tpu.replay.saving import files
from tests.helpers import ledger_env

# Updates and steps between two lines of a log of every update. A checkpoint may
# hold a few more than the last line before it, above all on several hosts.
MOST_UPDATES, MOST_STEPS = 10, 90


class Row(NamedTuple):
  """A stored step."""

  episode: tuple[int, int]
  step: int
  reward: float
  is_first: bool
  is_last: bool
  is_terminal: bool


class Checkpoint(NamedTuple):
  """Counters of a checkpoint, and the steps of its replays by stream."""

  name: int
  step: int
  update: int
  train: list[list[Row]]
  evaluation: list[list[Row]]


def read_checkpoint(logdir, name):
  """Reads a checkpoint; raises an error if it is not intact."""
  folder = layout.absolute(logdir / 'checkpoints' / str(name))
  checksums.verify(folder)
  run = layout.read_run(folder)
  wanted = {'step': jax.ShapeDtypeStruct((), np.int32)}
  agent = layout.load_arrays(folder, layout.read_shapes(folder), wanted)
  assert agent['step'] == run['update'], (agent['step'], run['update'])
  manifests = layout.read_manifests(folder).values()
  inserted = sum(x['inserted'] for x in manifests)
  assert inserted == run['step'], f'{inserted} steps in replay, {run["step"]}'
  train = _read_replay(logdir / 'replay', manifests)
  stored = sum(map(len, train))  # All, as the replay is large.
  assert stored == run['step'], f'{stored} steps stored, {run["step"]} made'
  return Checkpoint(
    name=name,
    step=run['step'],
    update=run['update'],
    train=train,
    evaluation=_read_replay(
      logdir / 'replay_eval', [x['eval'] for x in manifests if 'eval' in x]
    ),
  )


def _read_replay(directory, manifests):
  return [
    stream for manifest in manifests for stream in _streams(directory, manifest)
  ]


def _streams(directory, manifest):
  """Returns the rows of each stream of a shard."""
  keys, rows = sorted(manifest['spec']), {}
  for entry in manifest['files']:
    runs, *arrays = files.read_file(directory, entry)
    if entry['kind'] != 'steps':
      continue
    found = dict(zip(keys, arrays, strict=True))
    numbers = [
      (serial, row) for serial, *run in runs.tolist() for row in range(*run)
    ]
    for i, number in enumerate(numbers):
      environment, episode, step = found['vector'][i].astype(int).tolist()
      rows[number] = Row(
        (environment, episode),
        step,
        *(found[key][i].item() for key in Row._fields[2:]),
      )
  return [
    [rows[serial, row] for serial, fill, _ in stream for row in range(fill)]
    for stream in manifest['streams']
  ]


def check_checkpoint(checkpoint):
  """Checks that the stored steps follow each other as in the game."""
  for rows in (*checkpoint.train, *checkpoint.evaluation):
    for row in rows:
      _check_row(row)
  for rows in checkpoint.train:
    for one, two in itertools.pairwise(rows):
      _check_pair(one, two, abandoned=False)
  for rows in checkpoint.evaluation:
    for one, two in itertools.pairwise(rows):
      _check_pair(one, two, abandoned=True)


def _check_row(row):
  over = row.step == ledger_env.length(row.episode)
  assert row.step <= ledger_env.length(row.episode), row
  assert row.is_first == (row.step == 0), row
  assert row.is_terminal == (over and ledger_env.terminates(row.episode)), row
  assert row.is_last or not over, row
  assert row.reward == ledger_env.reward(row.episode, row.step), row


def _check_pair(one, two, abandoned):
  """Checks two rows; an evaluation may abandon its last episodes."""
  environment, number = one.episode
  over = one.step == ledger_env.length(one.episode)
  if two.episode[0] != environment:  # Another one took over.
    assert two.is_first, (one, two)
    assert two.episode[0] > environment, (one, two)
  elif abandoned and two.is_first:
    assert two.episode[1] > number, (one, two)
  elif over:
    assert two.episode == (environment, number + 1), (one, two)
    assert two.is_first, (one, two)
  else:
    assert (two.episode, two.step) == (one.episode, one.step + 1), (one, two)


def check_scores(lines, checkpoint=None):
  """Checks that every episode has one line.

  Args:
    lines: Lines of scores.jsonl.
    checkpoint: Checkpoint whose replay is compared with the lines, if they are
      all of that checkpoint or an earlier one.
  """
  played = []
  for line in lines:
    episode, length = ledger_env.identify(line['episode/score'])
    assert line['episode/length'] == length, line
    assert length == ledger_env.length(episode), line
    played.append((line['mode'], episode))
  assert len(set(played)) == len(played), 'an episode is in two lines'
  train = [episode for mode, episode in played if mode == 'train']
  last = {}
  for environment, number in train:
    assert number == last.get(environment, -1) + 1, (
      f'episode {number} of environment {environment} follows '
      f'{last.get(environment)}'
    )
    last[environment] = number
  if checkpoint:
    _compare(set(train), checkpoint)


def _compare(played, checkpoint):
  """Compares the episodes of scores.jsonl with those in the replay."""
  rows = {(x.episode, x.step) for rows in checkpoint.train for x in rows}
  last = {episode: ledger_env.length(episode) for episode, _ in rows}
  ended = {episode for episode in last if (episode, last[episode]) in rows}
  assert ended <= played, f'{ended - played} are not in scores.jsonl'
  for episode in played:
    # Its last observation is stored one step later.
    row = episode, ledger_env.length(episode) - 1
    assert row in rows, f'{episode} in scores.jsonl is not in the replay'


def check_metrics(lines, checkpoint=None):
  """Checks that curves have no gap and no point twice.

  Args:
    lines: Lines of metrics.jsonl.
    checkpoint: Checkpoint that is compared with the last of these lines, if
      they are all of that checkpoint or an earlier one.
  """
  logs = [line for line in lines if 'replay/steps' in line]
  for one, two in itertools.pairwise(logs):
    where = {k: (one[k], two[k]) for k in ('step', 'update')}
    assert 0 < two['step'] - one['step'] <= MOST_STEPS, where
    assert 0 <= two['update'] - one['update'] <= MOST_UPDATES, where
  for line in logs:
    assert 0 <= line['perf/goodput'] <= 1, line['perf/goodput']
    rates = [line['fps/policy'], line['fps/train']]
    assert all(np.isfinite(x) and x >= 0 for x in rates), rates
  if checkpoint and logs:
    last = logs[-1]
    assert last['update'] <= checkpoint.update, (last['update'], checkpoint[:3])
    assert checkpoint.update - last['update'] <= MOST_UPDATES, checkpoint[:3]
    assert checkpoint.step - last['step'] <= MOST_STEPS, checkpoint[:3]


def parse(lines):
  """Returns the objects of lines."""
  return [json.loads(line) for line in lines]


def upto(content, step):
  """Returns the lines of a file, as bytes, up to a step."""
  lines = content.splitlines(keepends=True)
  return [
    line
    for line in lines
    if line.endswith(b'\n') and json.loads(line)['step'] <= step
  ]


def committed(logdir):
  """Returns the names of the committed checkpoints, ascending."""
  return layout.steps(logdir / 'checkpoints')


def last_log(*paths):
  """Returns the last (step, update) in some files of JSON lines."""
  found = [(0, 0)]
  for path in paths:
    if path.exists():
      with path.open('rb') as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        lines = file.read().splitlines(keepends=True)
      for line in lines[-4:]:
        if line.startswith(b'{') and line.endswith(b'\n'):
          values = json.loads(line)
          found.append((values['step'], values['update']))
  return max(found)
