"""The list of suites, from the command line."""

import os
import pathlib
import subprocess
import sys
from importlib import metadata

from dreamer_tpu.envs import registry
from dreamer_tpu.tools import suites

ROOT = pathlib.Path(__file__).parents[2]

# Then says whether anything was imported that a list does not need; some
# packages import JAX by themselves.
PROGRAM = """
import sys
from dreamer_tpu.tools import suites
code = suites.main(sys.argv[1:])
packages = {'envpool', 'gymnax', 'craftax', 'brax', 'mujoco_playground'}
loaded = set(sys.modules) - ({'jax'} if packages & set(sys.modules) else set())
print([x for x in ('jax', 'OpenGL', 'tensorflow') if x in loaded])
sys.exit(code)
"""


def run(*args):
  result = subprocess.run(
    [sys.executable, '-c', PROGRAM, *args],
    cwd=ROOT,
    env={k: v for k, v in os.environ.items() if k != 'MUJOCO_GL'},
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  *lines, imported = result.stdout.splitlines()
  assert imported == '[]'
  return result.returncode, lines, result.stderr


def test_overview():
  code, lines, stderr = run()
  assert (code, stderr) == (0, '')
  rows = {line.split()[0]: line for line in lines[1:]}
  assert set(rows) == set(registry.BUILTIN)
  assert rows['crafter'].split()[1:4:2] == ['2', 'crafter_reward']
  assert rows['atari'].endswith(f'ale-py {metadata.version("ale-py")}')
  assert rows['pinpad'].endswith('comes along')
  assert max(map(len, lines)) <= 130


def test_all_tasks_of_a_suite():
  from dm_control import suite

  code, lines, _ = run('--suite=dmc')
  assert code == 0
  assert lines == sorted(lines)
  more = 'dmc_manip_reach_site', 'dmc_rodent_run_gaps'
  assert {*more, *(f'dmc_{x}_{y}' for x, y in suite.ALL_TASKS)} < set(lines)


def test_benchmarks():
  code, lines, _ = run('--benchmark=atari100k')
  assert code == 0
  assert len(lines) == 26
  assert {'atari_pong', 'atari_ms_pacman'} < set(lines)


def test_missing_packages():
  """The command is shown instead of a version."""
  missing = registry.Suite(package='no-such-package', extra='nothing')
  row = suites._row('crafter', missing, None)
  assert row[-1] == 'missing: pip install .[nothing]'
