"""Which devices JAX looks for, and which memory a CPU computes in."""

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
  """On Linux without any accelerator, tells JAX to take the CPU.

  It would find that out by itself, but libtpu, where it is installed, prints
  a page of errors meanwhile. To be called before JAX is imported; whoever has
  set JAX_PLATFORMS has chosen.
  """
  if sys.platform == 'linux' and not _may_have_accelerator():
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')


def use_huge_pages() -> None:
  """Starts this process anew, with memory that comes in pages of 2 MiB.

  On the CPU every update allocates its temporary arrays afresh. In pages of
  4 KiB the kernel spends a quarter of the time handing them out. The C library
  reads this setting at the start of a process only. Children do without, as
  environments would take more memory. Nothing happens where an accelerator
  computes, and where the kernel does not have such pages.
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
  """Whether this is a TPU VM."""
  vendors = pathlib.Path('/sys/bus/pci/devices').glob('*/vendor')
  return any(path.read_text().strip() == _GOOGLE for path in vendors)


def _may_have_accelerator() -> bool:
  if any(glob.glob(f'/dev/{name}') for name in _DEVICES):
    return True
  if importlib.metadata.entry_points(group='jax_plugins'):
    return True
  return has_tpu()
