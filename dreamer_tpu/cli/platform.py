"""Chooses JAX's platform, number format, cache and memory pages."""

import glob
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import sys

import dreamer_tpu
from dreamer_tpu.errors import UserError

_GOOGLE = '0x1ae0'
_TUNABLES = 'GLIBC_TUNABLES'
_HUGE = 'glibc.malloc.hugetlb=1'
_CACHE_BYTES = str(10 * 2**30)
_DEVICES = ('accel*', 'vfio/*', 'nvidia*', 'kfd', 'dri/*', 'dxg')


def choose() -> None:
  """Selects the CPU on Linux machines that have no accelerator.

  JAX would select it as well, but an installed libtpu prints a page of errors
  first. Call this before JAX is used. JAX_PLATFORMS takes precedence.
  """
  if sys.platform == 'linux' and not _may_have_accelerator():
    chosen = os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    # If it is imported, it has read the variable.
    if (jax := sys.modules.get('jax')) and jax.config.jax_platforms is None:
      jax.config.update('jax_platforms', chosen)


def versions() -> str:
  """Returns the versions that a run depends on; imports JAX."""
  import jax

  return (
    f'dreamer_tpu {dreamer_tpu.__version__} with JAX {jax.__version__} on '
    f'Python {platform.python_version()}'
  )


def compute_dtype(name: str, backend: str) -> str:
  """Returns the dtype of layers: `dtype.compute`, with 'auto' resolved."""
  if name != 'auto':
    return name
  return 'float32' if backend == 'cpu' else 'bfloat16'


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


def use_cache(setting: str) -> None:
  """Keeps compiled programs between runs, so that a restart takes seconds.

  Call this before JAX is imported. JAX_COMPILATION_CACHE_DIR takes precedence.

  Args:
    setting: A folder or `gs://bucket/path`; 'auto' for one in the user's cache
      folder; 'off'.

  Raises:
    UserError: The folder cannot be created.
  """
  if setting == 'off' or 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  path = setting
  if setting == 'auto':
    base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    path = os.path.join(base, 'dreamer_tpu', 'jax')
  if '://' not in path:
    # A program for the CPU holds instructions of this one.
    path = os.path.join(path, f'cpu-{_cpu()}')
    try:
      os.makedirs(path, exist_ok=True)
    except OSError as error:
      if setting == 'auto':
        return
      raise UserError(
        f"jax.cache='{setting}' cannot be written ({error.strerror}); name "
        "another folder, or 'off'."
      ) from error
    if not os.access(path, os.W_OK):
      return
    os.environ.setdefault('JAX_COMPILATION_CACHE_MAX_SIZE', _CACHE_BYTES)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = path
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')


def _cpu() -> str:
  """Returns a short name of the kind of CPU and its instruction sets."""
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:
    text = platform.processor()
  lines = {x for x in text.splitlines() if x.startswith(('flags', 'Features'))}
  named = ' '.join([platform.machine(), *sorted(lines)])
  return hashlib.sha256(named.encode()).hexdigest()[:12]


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
