"""Which devices JAX looks for."""

import glob
import importlib.metadata
import os
import pathlib
import sys

_GOOGLE = '0x1ae0'
_DEVICES = ('accel*', 'vfio/*', 'nvidia*', 'kfd', 'dri/*', 'dxg')


def choose() -> None:
  """On Linux without any accelerator, tells JAX to take the CPU.

  It would find that out by itself, but libtpu, where it is installed, prints
  a page of errors meanwhile. To be called before JAX is imported; whoever has
  set JAX_PLATFORMS has chosen.
  """
  if sys.platform == 'linux' and not _may_have_accelerator():
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')


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
