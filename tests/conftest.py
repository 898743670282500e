"""Runs tests on eight virtual CPU devices, or on the platform JAX_PLATFORMS.

Processes started by tests inherit the platform and the compilation cache, but
not the number of devices.
"""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR', str(ROOT / '.pytest_cache' / 'jax')
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
os.environ.setdefault('MUJOCO_GL', 'egl')

import jax  # noqa: E402 (reads the variables above)
import pytest  # noqa: E402
from absl import logging  # noqa: E402

from tests.helpers.disk import Disk  # noqa: E402

if os.environ['JAX_PLATFORMS'] == 'cpu':
  jax.config.update('jax_num_cpu_devices', 8)


@pytest.fixture(autouse=True)
def verbosity():
  """Shows warnings, whatever earlier tests have set."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.WARNING)
  yield
  logging.set_verbosity(before)


@pytest.fixture
def disk(tmp_path):
  """A small disk that can become full or read-only."""
  disk = Disk(tmp_path / 'disk')
  yield disk
  disk.release()
