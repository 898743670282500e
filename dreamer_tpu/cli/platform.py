"""Chooses JAX's platform, its number format, and the memory pages of a CPU."""

import glob
import importlib.metadata
import os
import pathlib
import sys

_GOOGLE = '0x1ae0'
_TUNABLES = 'GLIBC_TUNABLES'
_HUGE = 'glibc.malloc.hugetlb=1'
_DEVICES = ('accel*', 'vfio/*', 'nvidia*', 'kfd', 'dri/*', 'dxg')


def choose() -> None:
  """Selects the CPU on Linux machines that have no accelerator.

  JAX would select it as well, but an installed libtpu prints a page of errors
  first. Call this before JAX is imported. JAX_PLATFORMS takes precedence.
  """
  if sys.platform == 'linux' and not _may_have_accelerator():
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')


def compute_dtype(name: str, platform: str) -> str:
  """Returns the dtype of layers: `dtype.compute`, with 'auto' resolved."""
  if name != 'auto':
    return name
  return 'float32' if platform == 'cpu' else 'bfloat16'


def use_huge_pages() -> None:
  """Restarts this process with memory pages of 2 MiB, if it runs on the CPU.

  Every update on the CPU allocates new temporary arrays. With pages of 4 KiB,
  a quarter of the time goes to page faults. The C library reads the setting
  only when a process starts, so the process executes itself again. Children
  do not inherit the setting: it would increase the memory of environments.
  Does nothing on an accelerator or without kernel support.
  """
  tunables = os.environ.get(_TUNABLES, '')
  if _HUGE in tunables:
    os.environ[_TUNABLES] = tunables.replace(_HUGE, '').strip(':')
    return
  enabled = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')
  on_cpu = os.environ.get('JAX_PLATFORMS') == 'cpu'
  if on_cpu and enabled.exists() and '[madvise]' in enabled.read_text():
    os.environ[_TUNABLES] = ':'.join(filter(None, (tunables, _HUGE)))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def has_tpu() -> bool:
  """Returns whether this machine is a TPU VM."""
  vendors = pathlib.Path('/sys/bus/pci/devices').glob('*/vendor')
  return any(path.read_text().strip() == _GOOGLE for path in vendors)


def _may_have_accelerator() -> bool:
  if any(glob.glob(f'/dev/{name}') for name in _DEVICES):
    return True
  if importlib.metadata.entry_points(group='jax_plugins'):
    return True
  return has_tpu()
