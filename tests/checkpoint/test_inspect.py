"""Lists checkpoints from the command line and in Python."""

import os
import pathlib
import shutil
import subprocess
import sys

import jax.numpy as jnp
import pytest

from dreamer_tpu.checkpoint.manager import Checkpointer
from dreamer_tpu.tools import inspect

ROOT = pathlib.Path(__file__).parents[2]
PUBLIC = ROOT / 'tests' / 'golden' / 'public_checkpoint'


@pytest.fixture(scope='module')
def logdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('logdir')
  agent = {
    'params': {
      'rssm': {'gru': {'kernel': jnp.zeros((4, 8, 24))}},
      'value': {'out': {'bias': jnp.zeros(255, jnp.bfloat16)}},
    },
    'step': jnp.int32(3),
  }
  run = {'updates': 70, 'config': {'task': 'atari_pong', 'long': 'x' * 999}}
  with Checkpointer(folder / 'checkpoints') as checkpointer:
    for step in (100, 2000):
      checkpointer.save(step, agent, run, lambda: {'chunks': ['aa', 'bb']})
  return folder


def command(*args):
  return subprocess.run(
    [sys.executable, '-m', 'dreamer_tpu.tools.inspect', *map(str, args)],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=600,
  )


def test_command(logdir):
  result = command(logdir)
  assert result.returncode == 0, result.stderr
  lines = [line.split() for line in result.stdout.splitlines()]
  assert ['steps', '100,', '2000'] in lines
  assert ['items', 'agent,', 'replay,', 'run'] in lines
  name = 'params/rssm/gru/kernel'
  assert [name, 'float32', '[4,', '8,', '24]'] in lines
  assert ['params/value/out/bias', 'bfloat16', '[255]'] in lines
  assert ['arrays', '3,', 'elements', '1,024,', 'bytes', '3,586'] in lines
  assert ['run', 'updates', '70'] in lines
  assert 'replay shard 0 {"chunks": ["aa", "bb"]}' in result.stdout
  assert '2000' in lines[0][-1]


def test_bad_path_is_one_line(logdir):
  result = command(logdir.parent / 'typo')
  assert result.returncode == 1
  assert result.stdout == ''
  assert len(result.stderr.splitlines()) == 1
  assert 'typo' in result.stderr
  assert logdir.name in result.stderr  # what is there instead


def test_regex_and_older_step(logdir, capsys):
  assert not inspect.main([f'{logdir}/checkpoints/100', '--regex=^params/r'])
  out = capsys.readouterr().out
  assert 'params/rssm/gru/kernel' in out
  assert 'value/out' not in out
  assert 'arrays 1, elements 768' in out


def test_public_checkpoint(capsys):
  assert not inspect.main([str(PUBLIC)])
  out = capsys.readouterr().out
  assert 'counter updates 1073' in out
  assert 'rssm/gru/kernel ' in out
  assert 'arrays 68' in out


@pytest.mark.parametrize('damage', ['_METADATA', 'data.json'])
def test_damage_is_one_line(logdir, tmp_path, capsys, damage):
  shutil.copytree(logdir, tmp_path / 'copy')
  for path in (tmp_path / 'copy').rglob(damage):
    path.write_text('{')
  assert inspect.main([str(tmp_path / 'copy')]) == 1
  err = capsys.readouterr().err
  assert len(err.splitlines()) == 1
  assert 'cannot be read' in err


def test_bad_regex(logdir, capsys):
  assert inspect.main([str(logdir), '--regex=(']) == 1
  assert 'not a regular expression' in capsys.readouterr().err
