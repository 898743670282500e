"""Readers beside a process that saves and deletes checkpoints."""

import subprocess
import sys
import time

import numpy as np
import pytest

import dreamer_tpu
from dreamer_tpu.errors import UserError
from dreamer_tpu.tools import inspect

# Keeps one step, so that each commit deletes the step that is being read.
WRITER = """if True:
  import pathlib
  import select
  import sys

  import jax

  from dreamer_tpu.checkpoint.manager import Checkpointer
  from dreamer_tpu.run.saving import spaces_to_json
  from tests.helpers import small

  agent = small.make_agent(small.VECTOR_OBS)
  state = jax.jit(agent.init)(jax.random.key(0))
  run = {
    'update': 0,
    'config': {'agent': small.config().to_dict()},
    'spaces': spaces_to_json(agent),
  }
  folder = pathlib.Path(sys.argv[1]) / 'checkpoints'
  step = 0
  with Checkpointer(folder, keep=1) as checkpointer:
    while not select.select([sys.stdin], [], [], 0)[0]:
      step += 1
      checkpointer.save(step, state, {**run, 'step': step})
      print(step, [x.error for x in checkpointer.wait()], flush=True)
"""


@pytest.fixture
def writer(tmp_path):
  """Starts the writer in `tmp_path`; stops it at the end of the test."""
  process = subprocess.Popen(
    [sys.executable, '-c', WRITER, tmp_path],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "1 ['']\n"
  yield process
  process.communicate('\n')
  assert process.returncode == 0


def test_readers_beside_a_writer(writer, tmp_path):
  seen = set()
  while len(seen) < 4:  # The pace of the writer is its own.
    assert writer.poll() is None
    policy = dreamer_tpu.load_policy(tmp_path)
    assert list(policy.obs_space) == ['speed']
    lines = list(inspect.report(tmp_path))
    seen.add(lines[0])
    assert any(line.startswith('params/rssm/gru/kernel') for line in lines)


def test_a_step_that_is_gone_is_not_corrupt(writer, tmp_path):
  first = tmp_path / 'checkpoints' / '1'
  while first.exists():
    assert writer.poll() is None
    time.sleep(0.01)
  for read in (dreamer_tpu.load_policy, lambda x: list(inspect.report(x))):
    with pytest.raises(UserError, match=r"No checkpoint in '.*/1'"):
      read(first)
  _, action = dreamer_tpu.load_policy(tmp_path)(
    dreamer_tpu.load_policy(tmp_path).initial(), {'speed': np.zeros(3, 'f4')}
  )
  assert set(action) == {'move', 'tool'}
