"""Signals to a process that is busy."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# The last argument is the state in which the process waits. The save is long by
# the clock, which jumps and counts how often it is read.
PROCESS = """
import sys, threading, time
from dreamer_tpu.hosts.preemption import Preemption
waits = sys.argv[1]
ahead = reads = 0
right = time.monotonic
def clock():
  global reads
  reads += 1
  return right() + ahead
time.monotonic = clock
patience = 60 if waits == 'saving' else 0.5
with Preemption(patience=patience) as preemption:
  if waits != 'starting':
    preemption.attend(print, lambda: 'the newest checkpoint is of step 7')
  print('ready', flush=True)
  if waits == 'saving':
    while not preemption.requested:
      time.sleep(0.01)
    with preemption.saving():
      ahead, enough = 1000, reads + 3
      while reads < enough:
        time.sleep(0.01)
    print('saved', flush=True)
  else:
    threading.Event().wait(100)
"""


@pytest.mark.parametrize('waits', ['starting', 'compiling', 'saving'])
def test_a_signal_ends_the_process(waits):
  process = subprocess.Popen(
    [sys.executable, '-c', PROCESS, waits],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  )
  assert process.stdout.readline() == 'ready\n'
  begin = time.monotonic()
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=60)
  seconds = time.monotonic() - begin
  assert not err
  assert process.returncode == (0 if waits == 'saving' else 75)
  lines = out.splitlines()
  if waits == 'starting':
    assert lines == ['SIGINT: stopping at once; there is nothing new to save.']
  else:
    assert lines[0].startswith('SIGINT: saving and stopping')
  if waits == 'compiling':
    assert seconds > 0.5
    assert 'did not stop within 0.5 s' in lines[1]
    assert lines[1].endswith('the newest checkpoint is of step 7.')
  if waits == 'saving':
    assert lines[1:] == ['saved']
