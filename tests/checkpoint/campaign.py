"""Kills a run of two processes at random moments, and checks what is left.

python -m tests.checkpoint.campaign --kills=60 --logdir=/tmp/campaign

Every restart must resume from the newest committed step, with the agent and
the replay that were hashed when that step was saved.
"""

import argparse
import collections
import os
import pathlib
import random
import shutil
import signal
import sys
import time
from typing import NamedTuple

from dreamer_tpu.checkpoint import layout
from tests.helpers.processes import Processes

COUNT = 2
LIMIT = 180


class Result(NamedTuple):
  """Results of a campaign.

  Attributes:
    kills: Number of process pairs killed.
    writing: Number of them that were killed during a save.
    commits: Number of committed steps.
    faults: One line for each loss or error.
  """

  kills: int
  writing: int
  commits: int
  faults: list[str]


class Campaign:
  """Kills processes, restarts them and checks what they restore."""

  def __init__(self, logdir, seed=0):
    self._logdir = logdir
    self._rng = random.Random(seed)
    # Hashes that each process reported at the start of a save, by step.
    self._saved = collections.defaultdict(dict)
    self._committed = set()
    self._newest = 0
    self._writing = 0
    self._faults = []

  def run(self, kills):
    """Kills the processes `kills` times, then starts them to look."""
    for number in range(kills + 1):
      processes = Processes('forever', self._logdir, COUNT)
      try:
        self._wait(processes, 'restored' if number == kills else 'committed')
        if number < kills:
          time.sleep(self._rng.uniform(0, 2))
          self._kill(processes, in_save=number % 2 == 1)
      finally:
        processes.kill()
      self._check(processes)
      print(f'{number}: newest {self._newest}, {self._faults}', flush=True)
    steps = len(self._committed)
    return Result(kills, self._writing, steps, self._faults)

  def _wait(self, processes, event):
    deadline = time.monotonic() + LIMIT
    while not all(
      any(x['event'] == event for x in lines) for lines in processes.lines
    ):
      if time.monotonic() > deadline or processes.all[0].poll() is not None:
        processes.kill()
        errors = [line for lines in processes.errors for line in lines]
        raise RuntimeError(''.join(errors))
      time.sleep(0.01)

  def _kill(self, processes, in_save):
    """Kills both at once or one after the other, in a save or anywhere."""
    while True:
      self._stop(processes)
      if self._saving() or not in_save:
        break
      for process in processes.all:
        process.send_signal(signal.SIGCONT)
      while not self._saving() and processes.all[0].poll() is None:
        time.sleep(0.002)
      time.sleep(self._rng.uniform(0, 0.15))
    self._writing += self._saving()
    order = self._rng.sample(processes.all, COUNT)
    order[0].kill()
    if self._rng.random() < 0.5:
      order[1].send_signal(signal.SIGCONT)
      time.sleep(self._rng.uniform(0, 0.3))
    order[1].kill()

  def _stop(self, processes):
    """Stops the processes, so that a save does not end while it is seen."""
    for process in processes.all:
      process.send_signal(signal.SIGSTOP)
    events = os.WSTOPPED | os.WEXITED | os.WNOWAIT
    for process in processes.all:
      os.waitid(os.P_PID, process.pid, events)
      assert process.poll() is None

  def _saving(self):
    names = [x.name for x in (self._logdir / 'checkpoints').iterdir()]
    return any('.orbax-checkpoint-tmp' in name for name in names)

  def _check(self, processes):
    for index, lines in enumerate(processes.lines):
      self._check_restored(index, lines[0])
      for line in lines:
        hashes = line['agent'], line['replay']
        if line['event'] == 'saving':
          self._saved[line['step']][index] = hashes
        elif line['event'] == 'committed':
          self._committed.add(line['of'])
        elif line['event'] == 'failed':
          self._faults.append(f'a save failed: {line}')
    steps = layout.steps(self._logdir / 'checkpoints')
    self._newest = max(steps, default=0)
    self._committed |= set(steps)
    if self._newest < max(self._committed):
      lost = max(self._committed)
      self._faults.append(f'step {lost} was committed and is lost')
    if layout.quarantined(layout.absolute(self._logdir / 'checkpoints')):
      self._faults.append('a committed step was corrupt')

  def _check_restored(self, index, line):
    if line['event'] != 'restored' or line['step'] != self._newest:
      self._faults.append(f'{line} instead of step {self._newest}')
      return
    saved = self._saved[self._newest].get(index)
    if self._newest and saved != (line['agent'], line['replay']):
      self._faults.append(f'{line} differs from what was saved, {saved}')


def main():
  """Runs a campaign; returns 1 if anything was lost."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--kills', type=int, default=60)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--logdir', type=pathlib.Path, required=True)
  args = parser.parse_args()
  shutil.rmtree(args.logdir, ignore_errors=True)
  args.logdir.mkdir(parents=True)
  begin = time.monotonic()
  result = Campaign(args.logdir, args.seed).run(args.kills)
  print(result, f'{time.monotonic() - begin:.0f} s')
  return int(bool(result.faults))


if __name__ == '__main__':
  sys.exit(main())
