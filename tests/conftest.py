"""Tests run on eight virtual CPU devices, or on what JAX_PLATFORMS names.

Only the platform and the compilation cache reach the processes that tests
start; these see as many devices as any other program.
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

if os.environ['JAX_PLATFORMS'] == 'cpu':
  jax.config.update('jax_num_cpu_devices', 8)
