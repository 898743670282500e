"""Usage of the machine, children included."""

import subprocess
import sys

import psutil
import pytest

from dreamer_tpu.metrics.system import Usage, memory_limit, release_memory
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
  # Other tests may have started the resource tracker of multiprocessing.
  rss = psutil.Process().memory_info().rss / 1e9
  assert 0.9 * rss < alone < 1.1 * rss + 0.05
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
  # Times are in ticks of 10 ms, and that resource tracker takes some as well.
  assert 0.15 < spent < times.user + times.system + own + 0.05


def write(folder, name, text):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / name).write_text(f'{text}\n')


@pytest.mark.parametrize('version', [1, 2])
def test_the_tightest_group_limits_the_memory(tmp_path, version):
  total = psutil.virtual_memory().total
  mounted, own = tmp_path / 'cgroup', tmp_path / 'own'
  assert memory_limit(mounted, own) == (total, 'machine')
  if version == 1:
    own.write_text('5:cpu,cpuacct:/job\n4:memory:/job/step\n0::/\n')
    root, name = mounted / 'memory', 'memory.limit_in_bytes'
    unlimited = '9223372036854771712'
  else:
    own.write_text('0::/job/step\n')
    root, name, unlimited = mounted, 'memory.max', 'max'
  write(root, name, unlimited)
  write(root / 'job' / 'step', name, unlimited)
  assert memory_limit(mounted, own) == (total, 'machine')
  write(root / 'job', name, 3_000_000)
  write(root / 'other', name, 1_000_000)
  assert memory_limit(mounted, own) == (3_000_000, 'cgroup')
  # In a container, only the root may be visible.
  own.write_text(own.read_text().replace('/job/step', '/not/mounted'))
  write(root, name, 2_000_000)
  assert memory_limit(mounted, own) == (2_000_000, 'cgroup')


def test_the_limit_of_this_machine():
  limit, _ = memory_limit()
  assert psutil.Process().memory_info().rss < limit
  assert limit <= psutil.virtual_memory().total


def test_freed_memory_returns_to_the_system():
  pieces = [bytearray(50_000) for _ in range(4000)]
  last = bytearray(50_000)  # Keeps the heap from shrinking by itself.
  full = psutil.Process().memory_info().rss
  pieces.clear()
  release_memory()
  assert full - psutil.Process().memory_info().rss > 150e6
  assert len(last) == 50_000
