"""Starts the processes of checkpoint_worker.py."""

import json
import os
import pathlib
import subprocess
import sys
import threading

from tests.helpers import checkpoint_worker, pods

ROOT = pathlib.Path(__file__).parents[2]


class Processes:
  """Worker processes of one run.

  Attributes:
    lines: JSON objects that each has printed so far.
    errors: Lines of the standard error of each.
  """

  def __init__(self, mode, logdir, count, mesh='2,2,1'):
    coordinator = f'localhost:{pods.free_port()}'
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    env.pop('XLA_FLAGS', None)
    self.all = [
      subprocess.Popen(
        [
          *(sys.executable, checkpoint_worker.__file__, mode, str(logdir)),
          *(str(index), str(count), coordinator, mesh),
        ],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for index in range(count)
    ]
    self.lines = [[] for _ in range(count)]
    self.errors = [[] for _ in range(count)]
    self._threads = [
      threading.Thread(target=self._read, args=(stream, into), daemon=True)
      for process, out, err in zip(
        self.all, self.lines, self.errors, strict=True
      )
      for stream, into in ((process.stdout, out), (process.stderr, err))
    ]
    for thread in self._threads:
      thread.start()

  def _read(self, stream, into):
    for line in stream:
      # A process that is killed may leave half a line.
      if line.startswith('{') and line.endswith('}\n'):
        into.append(json.loads(line))
      elif stream in [x.stderr for x in self.all]:
        into.append(line)

  def end(self, timeout=120):
    """Waits for all and returns their exit codes."""
    try:
      codes = [process.wait(timeout) for process in self.all]
    finally:
      self.kill()
    return codes

  def kill(self):
    """Kills all and reads the rest of their output."""
    for process in self.all:
      process.kill()
    for process in self.all:
      process.wait()
    for thread in self._threads:
      thread.join()
