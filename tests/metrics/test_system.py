"""Usage of the machine, children included."""

import subprocess
import sys

import psutil
import pytest

from dreamer_tpu.metrics.system import Usage
from tests.helpers.clock import Clock

CODE = """if True:
  import time
  x = bytearray(200_000_000)
  while time.process_time() < 0.2:
    pass
  print(flush=True)
  input()
"""


def cpu_seconds():
  times = psutil.Process().cpu_times()
  return times.user + times.system


def test_usage_counts_children():
  clock = Clock()
  before = cpu_seconds()
  usage = Usage(clock)
  alone = usage.stats()['usage/ram_gb']
  assert alone == pytest.approx(psutil.Process().memory_info().rss / 1e9, 0.1)
  child = subprocess.Popen(
    [sys.executable, '-c', CODE],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  try:
    child.stdout.readline()
    clock.advance(2)
    stats = usage.stats(hbm_bytes=3e9)
    times = psutil.Process(child.pid).cpu_times()
  finally:
    child.communicate(b'\n')
  assert 0.19 < stats['usage/ram_gb'] - alone < 0.3
  assert stats['usage/hbm_gb'] == 3
  assert 'usage/hbm_gb' not in usage.stats()
  spent = 2 * stats['usage/cpu'] / 100
  own = cpu_seconds() - before
  assert 0.15 < spent < times.user + times.system + own + 1e-6
