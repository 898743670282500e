"""Usage of the machine, children included."""

import subprocess
import sys

import psutil
import pytest

from dreamer_tpu.metrics.system import Usage


def test_usage_counts_children():
  usage = Usage()
  code = 'x = bytearray(200_000_000); print(flush=True); input()'
  alone = usage.stats()['usage/ram_gb']
  child = subprocess.Popen(
    [sys.executable, '-c', code],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  try:
    child.stdout.readline()
    stats = usage.stats(hbm_bytes=3e9)
  finally:
    child.communicate(b'\n')
  assert alone == pytest.approx(psutil.Process().memory_info().rss / 1e9, 0.1)
  assert 0.19 < stats['usage/ram_gb'] - alone < 0.3
  assert stats['usage/hbm_gb'] == 3
  assert stats['usage/cpu'] > 0
  assert 'usage/hbm_gb' not in usage.stats()
