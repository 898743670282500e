"""Large memory pages, measured by page faults."""

import os
import pathlib
import subprocess
import sys

import pytest

SIZE = 64 << 20  # Bytes; 16,384 pages of 4 KiB.
PROGRAM = f"""
import os, resource, sys
from dreamer_tpu.cli import platform
platform.use_huge_pages()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
memory = bytearray({SIZE})
memory[::4096] = bytes(len(memory[::4096]))
print(faults() - before, sys.argv[1], os.environ.get('GLIBC_TUNABLES', ''))
"""
ENABLED = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


def run(**env):
  command = [sys.executable, '-c', PROGRAM, 'argument']
  env = {**os.environ, 'PYTHONPATH': '.', **env}
  out = subprocess.run(
    command, env=env, capture_output=True, text=True, check=True
  ).stdout
  faults, argument, *left = out.split()
  assert argument == 'argument'
  assert not left or 'hugetlb' not in left[0]
  return int(faults)


@pytest.mark.skipif(
  not ENABLED.exists() or '[madvise]' not in ENABLED.read_text(),
  reason='needs a kernel with transparent huge pages on request',
)
def test_large_pages_on_the_cpu_alone():
  assert run(JAX_PLATFORMS='cpu') < 2000
  assert run(JAX_PLATFORMS='tpu') > 15_000
