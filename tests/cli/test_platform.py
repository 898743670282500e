"""Large memory pages, as the kernel lists them; programs kept between runs."""

import os
import pathlib
import subprocess
import sys

import pytest

# Sums the MiB for which large pages are requested ('hg'). Whether there are any
# depends on the memory of the whole machine.
PROGRAM = r"""
import os, re, sys
from dreamer_tpu.cli import platform
platform.use_huge_pages()
memory = bytearray(64 << 20)
with open('/proc/self/smaps') as file:
  regions = re.findall(r'(?ms)^Size: +(\d+) kB$.*?^VmFlags:(.*?)$', file.read())
requested = sum(int(size) for size, flags in regions if 'hg' in flags.split())
print(requested >> 10, sys.argv[1], os.environ.get('GLIBC_TUNABLES', ''))
"""
ENABLED = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


def run(**env):
  command = [sys.executable, '-c', PROGRAM, 'argument']
  env = {**os.environ, 'PYTHONPATH': '.', **env}
  out = subprocess.run(
    command, env=env, capture_output=True, text=True, check=True
  ).stdout
  requested, argument, *left = out.split()
  assert argument == 'argument'
  assert not left or 'hugetlb' not in left[0]
  return int(requested)


@pytest.mark.skipif(
  not ENABLED.exists() or '[madvise]' not in ENABLED.read_text(),
  reason='needs a kernel with transparent huge pages on request',
)
def test_large_pages_on_the_cpu_alone():
  assert run(JAX_PLATFORMS='cpu') > 60
  assert run(JAX_PLATFORMS='tpu') == 0


CACHED = """
import os, sys
from dreamer_tpu.cli import platform
platform.use_cache(sys.argv[1])
import jax, jax.monitoring, jax.numpy as jnp
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
hits = []
jax.monitoring.register_event_listener(
  lambda name, **kwargs: hits.append(name) if 'cache_hits' in name else None)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))).block_until_ready()
print(len(hits), jax.config.jax_compilation_cache_dir)
"""


def cached(setting, **env):
  env = {**os.environ, 'PYTHONPATH': '.', 'JAX_PLATFORMS': 'cpu', **env}
  if not env.get('JAX_COMPILATION_CACHE_DIR'):
    env.pop('JAX_COMPILATION_CACHE_DIR', None)
  command = [sys.executable, '-c', CACHED, setting]
  out = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
  hits, folder = out.stdout.decode().split()
  return int(hits), folder


def test_compiled_programs_are_kept_between_runs(tmp_path):
  user = dict(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR='')
  hits, folder = cached('auto', **user)
  assert hits == 0
  assert folder.startswith(f'{tmp_path}/dreamer_tpu/jax/cpu-')
  hits, again = cached('auto', **user)
  assert hits > 0
  assert again == folder
  assert cached('off', **user) == (0, 'None')
  assert cached(str(tmp_path / 'mine'), **user)[1].startswith(
    f'{tmp_path}/mine/cpu-'
  )
  given = dict(user, JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'given'))
  assert cached('auto', **given)[1] == f'{tmp_path}/given'
