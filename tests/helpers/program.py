"""Runs of main.py as a process, with their exit codes and files."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 600


class Ended(NamedTuple):
  """Exit code, duration, stdout, and the lines of stderr."""

  code: int
  seconds: float
  out: str
  err: list[str]


class Program:
  """Runs main.py in a process that can be watched and stopped."""

  def __init__(self, logdir, *args, prefix=(), **env):
    self._begin = time.monotonic()
    self.lines: list[str] = []
    self.process = subprocess.Popen(
      [*prefix, sys.executable, ROOT / 'main.py', f'--logdir={logdir}', *args],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, **env},
      start_new_session=True,
    )
    self._err: list[str] = []
    self._threads = [
      threading.Thread(target=lines.extend, args=(stream,))
      for lines, stream in (
        (self.lines, self.process.stdout),
        (self._err, self.process.stderr),
      )
    ]
    for thread in self._threads:
      thread.start()

  def wait_for(self, condition):
    """Waits until a condition, a function without arguments, is true."""
    deadline = time.monotonic() + LIMIT
    while not condition():
      if self.process.poll() is not None or time.monotonic() > deadline:
        self.process.kill()
        raise AssertionError(self.end())
      time.sleep(0.02)

  def says(self, text):
    """Waits for a line on the terminal that contains a text."""
    self.wait_for(lambda: any(text in line for line in list(self.lines)))

  def end(self):
    """Waits for the process and returns its results."""
    try:
      code = self.process.wait(LIMIT)
    finally:
      with contextlib.suppress(ProcessLookupError):
        self.process.kill()
    for thread in self._threads:
      thread.join()
    seconds = time.monotonic() - self._begin
    err = [line.rstrip('\n') for line in self._err]
    return Ended(code, seconds, ''.join(self.lines), err)


def run(logdir, *args, **env):
  """Runs main.py to its end."""
  return Program(logdir, *args, **env).end()


def read(path):
  """Returns the objects of a JSON lines file that may still grow."""
  lines = path.read_text().splitlines(keepends=True)
  return [json.loads(line) for line in lines if line.endswith('\n')]


def steps(logdir):
  """Returns the steps of the committed checkpoints of a run."""
  found = (logdir / 'checkpoints').iterdir()
  return sorted(int(path.name) for path in found if path.name.isdigit())


def state(logdir):
  """Returns the run state of the newest checkpoint."""
  newest = logdir / 'checkpoints' / str(steps(logdir)[-1])
  return json.loads((newest / 'run' / 'data.json').read_text())


def check_saved_as_logged(logdir):
  """Checks that a run saved where its metrics end; returns its saved state.

  The name of a checkpoint is a later number than its step if that is taken.
  """
  saved, last = state(logdir), read(logdir / 'metrics.jsonl')[-1]
  assert saved['step'] == last['step']
  assert saved['update'] >= last['update']
  return saved


def files(logdir):
  """Returns the contents of all files except the lock, by name."""
  return {
    str(path.relative_to(logdir)): path.read_bytes()
    for path in logdir.rglob('*')
    if path.is_file() and path.name != 'lock'
  }
